"""What a recipe or a command line says about data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from edgeopt.preprocess import Preprocess
from edgeopt.schema import Schema


class SourceSpec(Schema):
    """One part's source; a plain text is its path.

    Attributes:
        path: An ``.npz`` or ``.npy`` file, a folder of images, or ``package.module:function``; may be
            left out where ``DataSpec.path`` gives all parts.
        samples: Use at most this many, evenly spread over all of them.
    """

    path: str | None = None
    samples: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data


class DataSpec(Schema):
    """All that is said about data; a plain text is the path of all parts.

    Attributes:
        path: A folder with ``calibration.npz``, ``evaluation.npz`` and perhaps ``validation.npz`` (or
            folders of images of these names), or one file or folder that is split: sample i with
            i % 5 == 0 calibrates, the rest evaluates. A labels file with a column ``split`` says it itself.
        calibrate: The samples that passes and search may see.
        validate_: In recipes ``validate``: the samples that decide between alternatives; by default
            those with i % 5 == 4 of the calibration samples.
        evaluate: The samples that the judge alone sees. ``metric`` and ``harness`` may stand here too.
        preprocess: What happens to images first.
        metric: Such as ``top1``, or ``package.module:function``.
        harness: ``package.module:function``, for what one model call cannot judge.
    """

    path: str | None = None
    calibrate: SourceSpec | None = None
    validate_: SourceSpec | None = Field(default=None, alias="validate")
    evaluate: SourceSpec | None = None
    preprocess: Preprocess | None = None
    metric: str | None = None
    harness: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _lift(cls, data: Any) -> Any:
        """Reads a plain path, and lifts ``metric`` and ``harness`` out of ``evaluate``."""
        if isinstance(data, str):
            return {"path": data}
        evaluate = data.get("evaluate") if isinstance(data, Mapping) else None
        if isinstance(evaluate, Mapping) and ("metric" in evaluate or "harness" in evaluate):
            lifted = {key: evaluate[key] for key in ("metric", "harness") if key in evaluate}
            rest = {key: value for key, value in evaluate.items() if key not in lifted}
            both = [key for key in lifted if key in data]
            if both:
                raise ValueError(f"{both[0]} is given twice: in data and in data.evaluate")
            return {**data, "evaluate": rest, **lifted}
        return data

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if self.path is None:
            for name, part in (
                ("calibrate", self.calibrate),
                ("validate", self.validate_),
                ("evaluate", self.evaluate),
            ):
                if part is not None and part.path is None:
                    raise ValueError(f"{name} has no path")
        return self
