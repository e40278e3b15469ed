"""A job: one model for one device with one target, with everything that it needs decided."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt import passes as registry
from edgeopt import schema, targets
from edgeopt.budget import Budget
from edgeopt.data import DataSpec
from edgeopt.errors import DataError, EdgeoptError, UserError
from edgeopt.optimization import EXACT, SCHEDULE
from edgeopt.passes.base import STAGES, Options, Verify
from edgeopt.platform import Device, Platform, load_platform
from edgeopt.recipe import ModelEntry, PartEntry, RecipeFile
from edgeopt.targets.base import Target


@dataclass(frozen=True)
class PartSource:
    """Where a part of a model comes from.

    Attributes:
        source: Anything that ``edgeopt.load.load`` takes: a path, ``package.module:build``, a
            ``torch.nn.Module``, an ``onnx.ModelProto``, an ``onnx_ir.Model``.
        weights: A ``.safetensors`` file for a module that is built.
        shapes: Fixed shapes of inputs, by name.
        example: Example inputs of a module that was handed over.
    """

    source: Any
    weights: Path | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    example: Sequence[Any] | None = None


@dataclass(frozen=True)
class Job:
    """One model, one device, one target.

    Attributes:
        name: The model's name.
        parts: Its parts by name; a model of one part has the part ``model``.
        platform: The device and its runtime.
        target: The target, with its options.
        output: The artifact's folder.
        data: The data, or ``None``.
        base: The folder that the data's paths start from.
        budgets: The user's budgets; defaults are added by the judge.
        steps: The passes; ``None`` for the platform's own plan.
        places: Where a recipe names each of the steps, as ``file:line:column``; empty where none does.
        threads: Threads that the artifact will run with.
        seed: The seed of everything random.
        verify: How rewrites are proved.
        limit: Judge on so many evaluation samples only.
        allow_code: Code that a recipe names may run.
        force: Replace an output folder that is not ours.
        strict: Inconclusive verdicts count as failures.
    """

    name: str
    parts: Mapping[str, PartSource]
    platform: Platform
    target: Target
    output: Path
    data: DataSpec | None = None
    base: Path | None = None
    budgets: tuple[Budget, ...] = ()
    steps: tuple[Options, ...] | None = None
    places: tuple[str, ...] = ()
    threads: int = 1
    seed: int = 0
    verify: Verify = "fast"
    limit: int | None = None
    allow_code: bool = True
    force: bool = False
    strict: bool = False


def default_output(name: str, platform: Platform, root: Path = Path("build")) -> Path:
    """``build/MODEL/DEVICE/TARGET``."""
    return root / name / platform.device.name / platform.runtime.name


def make_target(platform: Platform, format: str = "", **options: Any) -> Target:
    """Makes the target of a platform's runtime, checking the format asked for; empty options are left out.

    Raises:
        UserError: The runtime has no such format, or the target no such option.
    """
    options = {key: value for key, value in options.items() if value}
    formats = platform.rules.formats
    if format and format not in formats:
        raise UserError(
            f"{platform.runtime.name} has no format {format!r}", hint=f"one of {', '.join(formats)}"
        )
    return targets.make(platform.runtime.target, format=format or formats[0], **options)


def make_steps(steps: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Options, ...]:
    """Makes passes from their names and options, and checks that their stages are in order.

    Raises:
        UserError: A pass or option is unknown, or a pass comes after one of a later stage.
    """
    made = tuple(
        registry.make(name, {key: value for key, value in options.items() if key != "id"})
        for name, options in steps
    )
    for earlier, later in itertools.pairwise(made):
        if STAGES.index(earlier.stage) > STAGES.index(later.stage):
            raise UserError(
                f"the pass {later.name!r} ({later.stage}) cannot come after "
                f"{earlier.name!r} ({earlier.stage})",
                hint=f"the order is {', '.join(STAGES)}",
            )
    return made


def jobs(file: RecipeFile, **common: Any) -> list[Job]:
    """Lists the jobs of a recipe: every model on every device with every target asked for.

    Args:
        file: The recipe.
        common: Fields of ``Job`` that the command line sets for all: ``force``, ``strict``, ...

    Raises:
        UserError: A device, target or pass is unknown, with its place in the recipe.
    """
    recipe = file.recipe
    found: list[Job] = []
    for index, device in enumerate(recipe.devices):
        if device.endswith((".yaml", ".yml")):
            device = str(file.resolve(device))
        targets_wanted: Sequence[str | None] = recipe.output.targets or [None]
        for target in targets_wanted:
            with _placed(file, "devices", index):
                platform = load_platform(device, target)
            for name, entry in recipe.named_models().items():
                where = ("models", name) if recipe.models else ("model",)
                listed = (*where, "passes") if entry.passes is not None else ("passes",)
                places = tuple(
                    file.position(*listed, number, step)
                    for number, item in enumerate(recipe.passes_of(entry) or ())
                    for step in item
                )
                with _placed(file, *listed):
                    steps = recipe.steps(entry, recipe.devices[index], default_passes())
                    for place, step in zip(places, steps or (), strict=False):
                        with placed(place):
                            make_steps([step])
                    made = None if steps is None else make_steps(steps)
                root = file.resolve(recipe.output.dir)
                found.append(
                    Job(
                        name=name,
                        parts=_parts(file, entry),
                        platform=platform,
                        target=make_target(platform, recipe.output.format, io=recipe.output.io),
                        output=default_output(name, platform, root),
                        data=entry.data or recipe.data,
                        base=file.path.parent,
                        budgets=recipe.budgets(entry),
                        steps=made,
                        places=places,
                        threads=recipe.run.threads,
                        seed=recipe.seed,
                        verify=recipe.verify,
                        **common,
                    )
                )
    return found


def _parts(file: RecipeFile, entry: ModelEntry) -> dict[str, PartSource]:
    parts: Mapping[str, PartEntry] = entry.parts or {"model": entry}
    return {
        name: PartSource(
            source=file.resolve(part.path) if part.path is not None else part.torch,
            weights=None if part.weights is None else file.resolve(part.weights),
            shapes=part.inputs,
        )
        for name, part in parts.items()
    }


@contextlib.contextmanager
def _placed(file: RecipeFile, *location: Any) -> Iterator[None]:
    """Adds a place in the recipe to an error that has none."""
    with placed(file.position(*location)):
        yield


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """Adds a place to an error that has none."""
    try:
        yield
    except EdgeoptError as error:
        error.where = error.where or where or None
        raise


def describe(
    model: Any,
    *,
    device: str | Device,
    target: str | None = None,
    data: Any = None,
    metric: str | None = None,
    harness: str | None = None,
    budget: Mapping[str, str | float] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    weights: str | Path | None = None,
    example: Any = None,
    passes: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
    scheme: str | None = None,
    keep_float: Sequence[str] = (),
    output: str | Path | None = None,
    format: str = "",
    io: str = "",
    name: str | None = None,
    **common: Any,
) -> Job:
    """Describes the job of one model on one device, as the command line and ``edgeopt.compile`` do.

    Args:
        model: Anything that ``edgeopt.load.load`` takes.
        device: A device's name, the path of its profile, or the profile.
        target: The runtime; by default the device's first.
        data: A path, ``package.module:function``, or the mapping that a recipe holds under ``data``.
        metric: A metric's name.
        harness: ``package.module:function``.
        budget: Limits by quantity, such as ``{"size": "3 MiB", "accuracy_drop": "1 pp"}``.
        shapes: Fixed shapes of inputs.
        weights: A ``.safetensors`` file for a torch module.
        example: Example inputs of a torch module.
        passes: Names of passes, or pairs of name and options; by default the platform's own plan.
        scheme: The quantization's scheme.
        keep_float: Patterns of nodes that stay in float.
        output: The artifact's folder.
        format: The artifact's format.
        io: ``int8`` for quantized inputs and outputs, where the target has that option.
        name: The model's name, by default its file's.
        common: Further fields of ``Job``.

    Raises:
        UserError: Something given is unknown or does not fit together.
    """
    platform = load_platform(device, target)
    named = name or _name(model)
    spec = None
    if data is not None:
        entries = {"path": data} if isinstance(data, (str, Path)) else dict(data)
        entries = {**entries, "path": str(entries["path"])} if "path" in entries else entries
        entries.update({key: text for key, text in (("metric", metric), ("harness", harness)) if text})
        spec = schema.validate(entries, DataSpec, DataError, Path("data"))
    elif metric is not None or harness is not None:
        raise UserError("a metric or harness needs data", hint="give --data")
    steps = None
    if passes is not None:
        steps = make_steps([(item, {}) if isinstance(item, str) else item for item in passes])
    if scheme is not None or keep_float:
        quantize = {
            **({"scheme": scheme} if scheme is not None else {}),
            **({"keep_float": tuple(keep_float)} if keep_float else {}),
        }
        names = [*structure_passes(), ("quantize", quantize), *schedule_passes()] if steps is None else None
        if names is None:
            raise UserError("give either passes, or scheme and keep_float")
        steps = make_steps(names)
    return Job(
        name=named,
        parts={"model": PartSource(model, None if weights is None else Path(weights), shapes or {}, example)},
        platform=platform,
        target=make_target(platform, format, io=io),
        output=default_output(named, platform) if output is None else Path(output),
        data=spec,
        budgets=tuple(Budget.parse(key, text) for key, text in (budget or {}).items()),
        steps=steps,
        **common,
    )


def structure_passes() -> list[tuple[str, dict[str, Any]]]:
    """The exact passes of the platform's own plan, in order; fusions of other packages come last."""
    known = {*EXACT, *SCHEDULE}
    others = [name for name in registry.names() if name.startswith("fuse-") and name not in known]
    return [(name, {}) for name in (EXACT[0], "unfuse-attention", *EXACT[1:], *others)]


def schedule_passes() -> list[tuple[str, dict[str, Any]]]:
    """The exact passes that come after quantization, in order."""
    return [(name, {}) for name in SCHEDULE]


def default_passes() -> list[tuple[str, dict[str, Any]]]:
    """The platform's own plan: the exact passes, quantization as its rules allow, and what comes last."""
    return [*structure_passes(), ("quantize", {}), *schedule_passes()]


def code_name(code: str) -> str:
    """Names a model after the module of its ``package.module:build``, whose function is seldom telling."""
    return code.partition(":")[0].rpartition(".")[2]


def _name(model: Any) -> str:
    if isinstance(model, (str, Path)):
        text = str(model)
        return code_name(text) if ":" in text and not Path(text).exists() else Path(text).stem
    return type(model).__name__.lower() if not hasattr(model, "graph") else (model.graph.name or "model")
