"""The recipe: models, data, devices, passes and budgets in one YAML file.

Every error names file, line and column, and the nearest key known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from edgeopt import schema
from edgeopt.budget import KINDS, Budget
from edgeopt.data import DataSpec
from edgeopt.errors import RecipeError, UserError, nearest

FILE_NAME = "edgeopt.yaml"
"""The recipe found in the current folder without being named."""


def _steps(steps: Any) -> Any:
    """Turns each entry of a list of passes into a mapping from one name to its options."""
    if not isinstance(steps, list):
        raise ValueError("passes is a list of names, or of names with options")
    normal: list[dict[str, dict[str, Any]]] = []
    for step in steps:
        if isinstance(step, str):
            normal.append({step: {}})
        elif isinstance(step, Mapping) and len(step) == 1:
            name, options = next(iter(step.items()))
            if options is not None and not isinstance(options, Mapping):
                raise ValueError(f"the options of {name!r} must be keys and values")
            normal.append({name: dict(options or {})})
        else:
            raise ValueError("each pass is a name, or one name with its options")
    return normal


Steps = Annotated[list[dict[str, dict[str, Any]]], BeforeValidator(_steps)]


class Limits(schema.Schema):
    """The budgets: a limit with its unit each; a plain number is a difference of the metric."""

    size: str | float | None = None
    latency: str | float | None = None
    peak_memory: str | float | None = None
    accuracy_drop: str | float | None = None
    fidelity: str | float | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _readable(cls, text: Any, info: ValidationInfo) -> Any:
        """Checks a limit while its line is known."""
        try:
            Budget.parse(info.field_name or "", text)
        except UserError as error:
            raise ValueError(f"{error.message}{f'; {error.hint}' if error.hint else ''}") from None
        return text


class PartEntry(schema.Schema):
    """Where a model, or one part of it, comes from.

    ``inputs`` fixes the shape of inputs whose dimensions are dynamic.
    """

    path: str | None = None
    torch: str | None = None
    weights: str | None = None
    inputs: dict[str, list[int]] = {}


class ModelEntry(PartEntry):
    """A model: its source or its parts, and what differs from the rest of the recipe."""

    parts: dict[str, PartEntry] = {}
    data: DataSpec | None = None
    budget: Limits | None = None
    passes: Steps | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelEntry:
        if sum((self.path is not None, self.torch is not None, bool(self.parts))) != 1:
            raise ValueError("a model needs one of path, torch and parts")
        return self


class RunEntry(schema.Schema):
    """How the artifact will be run."""

    threads: int = Field(default=1, gt=0)
    batch: int = Field(default=1, gt=0)


class OutputEntry(schema.Schema):
    """Where artifacts go, and which targets are built for each device (default: its first)."""

    dir: str = "build"
    targets: list[str] | None = None
    format: str = ""
    io: str = ""


class Recipe(schema.Schema):
    """A whole recipe."""

    version: Literal[1] = Field(alias="recipe")
    model: ModelEntry | None = None
    models: dict[str, ModelEntry] = {}
    data: DataSpec | None = None
    devices: list[str] = Field(min_length=1)
    run: RunEntry = RunEntry()
    budget: Limits = Limits()
    passes: Steps | None = None
    overrides: dict[str, dict[str, dict[str, Any]]] = {}
    output: OutputEntry = OutputEntry()
    seed: int = 0
    verify: Literal["fast", "full", "off"] = "fast"

    @model_validator(mode="after")
    def _some_model(self) -> Recipe:
        if (self.model is None) == (not self.models):
            raise ValueError("give either model or models")
        for device in self.overrides:
            if device not in self.devices:
                raise ValueError(f"overrides names {device!r}, which is not among the devices")
        return self

    def named_models(self) -> dict[str, ModelEntry]:
        """Every model by its name; a single one is named after its file."""
        if self.model is None:
            return self.models
        if self.model.torch is not None:
            return {self.model.torch.partition(":")[0].rpartition(".")[2]: self.model}
        return {Path(self.model.path or "model").stem: self.model}

    def budgets(self, model: ModelEntry) -> tuple[Budget, ...]:
        """The budgets of one model: its own replace the recipe's, quantity by quantity."""
        own = {} if model.budget is None else model.budget.model_dump(exclude_none=True)
        limits = {**self.budget.model_dump(exclude_none=True), **own}
        return tuple(Budget.parse(quantity, limits[quantity]) for quantity in KINDS if quantity in limits)

    def passes_of(self, model: ModelEntry) -> list[dict[str, dict[str, Any]]] | None:
        """The passes listed for one model, its own or the recipe's; ``None`` where none are."""
        return model.passes if model.passes is not None else self.passes

    def steps(
        self, model: ModelEntry, device: str, default: Sequence[tuple[str, dict[str, Any]]] = ()
    ) -> list[tuple[str, dict[str, Any]]] | None:
        """The passes of one model on one device, overrides applied; ``None`` for the default ones.

        Args:
            model: One of the recipe's models.
            device: One of its devices.
            default: The default passes, which the overrides change where the recipe lists none.
        """
        chosen = self.passes_of(model)
        overrides = self.overrides.get(device, {})
        if chosen is None and not overrides:
            return None
        steps = [(name, dict(options)) for entry in chosen or [] for name, options in entry.items()]
        return merge_overrides(steps if chosen is not None else default, overrides)


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe with the place it came from, for relative paths and for errors.

    Attributes:
        recipe: The recipe.
        path: Its file.
        data: The round-trip data, which know every key's line and column.
    """

    recipe: Recipe
    path: Path
    data: Any

    def resolve(self, path: str) -> Path:
        """Resolves a path of the recipe, which is relative to the recipe's folder."""
        return self.path.parent / path

    def position(self, *location: Any) -> str:
        """Returns ``file:line:column`` of a key."""
        return f"{self.path}{schema.position(self.data, list(location))}"


def merge_overrides(
    steps: Sequence[tuple[str, dict[str, Any]]], overrides: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
    """Replaces options of passes, named by the pass or by its ``id``.

    Raises:
        RecipeError: An override names no pass of the list.
    """
    known = {str(options.get("id", name)) for name, options in steps}
    for name in overrides:
        if name not in known:
            raise RecipeError(
                f"the override {name!r} names no pass of the recipe", nearest=nearest(name, known)
            )
    return [(name, {**options, **overrides.get(str(options.get("id", name)), {})}) for name, options in steps]


def read_recipe(path: Path, settings: Sequence[str] = ()) -> RecipeFile:
    """Reads a recipe.

    Args:
        path: The YAML file.
        settings: ``key=value`` pairs that replace values before the check; keys are dotted, list
            items are named by their index, values are YAML.

    Raises:
        RecipeError: The file is missing or not valid; names line and column.
    """
    data = schema.load(path, RecipeError)
    for setting in settings:
        _set(data, setting)
    return RecipeFile(schema.validate(data, Recipe, RecipeError, path), path, data)


def _set(data: Any, setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {setting!r} is not of the form key=value", hint="--set budget.size='2 MiB'")
    try:
        value = schema.plain(YAML(typ="rt").load(text))
    except YAMLError:
        raise RecipeError(f"--set {key}: {text!r} is no YAML value") from None
    *parents, last = key.split(".")
    for name in parents:
        if isinstance(data, list):
            data = _item(data, name, setting)
        elif isinstance(data, Mapping):
            if not isinstance(data.get(name), (Mapping, list)):
                data[name] = {}  # type: ignore[index]
            data = data[name]
    if isinstance(data, list):
        _item(data, last, setting)
        data[int(last)] = value
    else:
        data[last] = value


def _item(data: list[Any], index: str, setting: str) -> Any:
    if not index.isdigit() or int(index) >= len(data):
        raise RecipeError(f"--set {setting!r}: the list has no item {index!r}, only 0 to {len(data) - 1}")
    return data[int(index)]
