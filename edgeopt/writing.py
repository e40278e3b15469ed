"""Writing the artifact's folder: the model's files and manifest, then the evidence beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from edgeopt import artifact as artifacts
from edgeopt import golden, host
from edgeopt.artifact import Artifact
from edgeopt.corridor import Corridor, changed_options
from edgeopt.graph.names import original_names
from edgeopt.job import Job, PartSource
from edgeopt.outcome import Outcome
from edgeopt.passes.base import Samples
from edgeopt.session import signature
from edgeopt.steps import digest, hash_file, tool_versions


def write_artifact(corridor: Corridor, folder: Path) -> Artifact:
    """Emits every part into the artifact's folder and writes its manifest."""
    corridor.watch.step("write")
    job = corridor.job
    parts: dict[str, dict[str, Any]] = {}
    roles: dict[str, str] = {}
    for part in corridor.parts.values():
        root = folder / part.name if len(corridor.parts) > 1 else folder
        root.mkdir(exist_ok=True)
        prefix = f"{part.name}/" if len(corridor.parts) > 1 else ""
        emitted = job.target.emit(part.state.model, job.platform, root)
        corridor.notes.extend(note for note in emitted.notes if note not in corridor.notes)
        roles.update({prefix + file.path: file.role for file in emitted.files})
        inputs = signature(part.original.graph.inputs)
        outputs = signature(part.original.graph.outputs)
        vectors = golden.write_golden(
            part.state.model,
            part.calls(job.seed),
            corridor.rules,
            corridor.precisions[part.name],
            folder / "golden" / prefix,
            folder,
        )
        roles.update({vectors["inputs"]: "golden", vectors["outputs"]: "golden"})
        for name, text in job.target.snippets(emitted, inputs).items():
            (root / name).write_text(text, encoding="utf-8")
            roles[prefix + name] = "snippet"
        contracts: dict[str, Any] = {"golden": vectors, "precision": corridor.precisions[part.name]}
        if part.calibrate is not None:
            contracts["histograms"] = _histograms(corridor, part.calibrate)
        parts[part.name] = artifacts.part_manifest(emitted, inputs, outputs, prefix=prefix, **contracts)
    head = {
        "name": job.name,
        "device": corridor.device,
        "target": job.target.name,
        "format": job.target.format,
        "runtime": {
            "name": job.platform.runtime.name,
            "version": job.platform.runtime_version,
            "floors": corridor.rules.floors,
        },
    }
    return artifacts.write_manifest(folder, head, parts, roles)


def _histograms(corridor: Corridor, samples: Samples) -> dict[str, Any]:
    """The histograms of the inputs over the calibration samples, which the store remembers."""
    key = digest("histograms", samples.digest, golden.BINS, tool_versions())
    record = corridor.store.record(key)
    if record is None:
        record = golden.histograms(samples.feeds(), golden.input_ranges(samples.feeds()))
        corridor.store.keep(key, record)
    return record


def write_metrics(folder: Path, outcome: Outcome) -> None:
    """Writes the figures and verdicts."""
    report = outcome.to_json()
    del report["ledger"]
    _write_json(folder / "metrics.json", report)


def write_evidence(corridor: Corridor, folder: Path, outcome: Outcome) -> None:
    """Writes what names the artifact's digest: figures, ledger, provenance."""
    job = corridor.job
    write_metrics(folder, outcome)
    ledger = outcome.to_json()["ledger"]
    _write_json(folder / "ledger.json", {"artifact": outcome.digest, "steps": ledger})
    with (folder / "recipe.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(equivalent_recipe(job), file)
    sources = {
        name: {
            "source": str(source.source) if isinstance(source.source, (str, Path)) else "in memory",
            "digest": corridor.parts[name].digest,
            "weights": None if source.weights is None else hash_file(source.weights),
            "shapes": {key: list(shape) for key, shape in source.shapes.items()},
        }
        for name, source in job.parts.items()
    }
    parts = {
        "calibrate": corridor.data.calibrate,
        "validate": corridor.data.validate,
        "evaluate": corridor.data.evaluate,
    }
    _write_json(
        folder / "provenance.json",
        {
            "artifact": outcome.digest,
            "models": sources,
            "data": {name: None if part is None else part.digest for name, part in parts.items()},
            "device": {"name": corridor.device, "profiles": job.platform.digest},
            "seed": job.seed,
            "verify": job.verify,
            "tools": tool_versions(),
            "host": host.isa(),
            "original_names": {
                name: [  # in the order of the model file, whose nodes have lost their names
                    {"node": node.name or "", "original": list(original_names(node))}
                    for node in part.state.model.graph
                ]
                for name, part in corridor.parts.items()
            },
        },
    )


def equivalent_recipe(job: Job) -> dict[str, Any]:
    """Writes a job as a recipe that would make the same artifact, its paths absolute.

    A model handed over in memory has no path; its entry says so in the place of one.
    """

    def place(path: str | Path) -> str:
        return str(path) if ":" in str(path) else str(((job.base or Path()) / path).absolute())

    def entry(source: PartSource) -> dict[str, Any]:
        text = source.source
        if not isinstance(text, (str, Path)):
            found: dict[str, Any] = {"path": "handed over in memory"}
        elif ":" in str(text):
            found = {"torch": str(text)}
        else:
            found = {"path": place(text)}
        if source.weights is not None:
            found["weights"] = place(source.weights)
        if source.shapes:
            found["inputs"] = {name: list(shape) for name, shape in source.shapes.items()}
        return found

    parts = {name: entry(source) for name, source in job.parts.items()}
    recipe: dict[str, Any] = {"recipe": 1}
    recipe["models"] = {job.name: parts["model"] if len(parts) == 1 else {"parts": parts}}
    if job.data is not None:
        data = job.data.model_dump(by_alias=True, exclude_defaults=True, mode="json")
        for holder in (data, *(data.get(name) or {} for name in ("calibrate", "validate", "evaluate"))):
            if "path" in holder:
                holder["path"] = place(holder["path"])
        recipe["data"] = data
    recipe["devices"] = [job.platform.device.name]
    recipe["run"] = {"threads": job.threads}
    if job.budgets:
        recipe["budget"] = {
            item.quantity: f"{item.limit!r} {item.unit}" if item.unit else item.limit for item in job.budgets
        }
    if job.steps is not None:
        recipe["passes"] = [{step.name: changed_options(step)} for step in job.steps]
    recipe["output"] = {"targets": [job.platform.runtime.name], "format": job.target.format}
    recipe.update(seed=job.seed, verify=job.verify)
    return recipe


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
