"""Opening what a user names, a model file or an artifact's folder, to look inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


def open_model(path: Path) -> ir.Model | None:
    """Loads a model, or the ONNX file of an artifact; ``None`` for an artifact in another format.

    Every node has a name: the one in the file or, in an artifact, the one that its provenance keeps.

    Raises:
        ModelError: There is no such model, or it is corrupt.
    """
    from edgeopt.artifact import is_artifact, open_artifact
    from edgeopt.diff import restore_names
    from edgeopt.graph.names import name_nodes
    from edgeopt.load import load

    if not (path.is_dir() and is_artifact(path)):
        model = load(str(path))
        name_nodes(model)
        return model
    main = str(open_artifact(path).manifest.get("model", ""))
    if not main.endswith(".onnx"):
        return None
    model = load(str(path / main))
    try:
        provenance = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
        restore_names(model, provenance["original_names"]["model"])
    except (OSError, ValueError, KeyError, TypeError):
        name_nodes(model)  # without provenance the nodes are named after what they make
    return model


def sample_inputs(
    model: ir.Model, data: str | None, count: int, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Takes inputs of calls from data, or draws them where none are given."""
    from edgeopt.diff import seeded_samples, take

    if data is None:
        return seeded_samples(model, count, seed)
    from edgeopt.data import DataSpec, open_data
    from edgeopt.session import signature

    opened = open_data(DataSpec(path=data), signature(model.graph.inputs))
    samples = opened.calibrate or opened.validate
    return [] if samples is None else [dict(feeds) for feeds in take(samples.feeds(), count)]
