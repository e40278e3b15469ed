"""YAML files checked against a schema, with line and column in every error.

Recipes, device profiles and runtime profiles are pydantic models; ``read`` turns a file into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from edgeopt.errors import UserError, nearest


class Schema(BaseModel):
    """Base of everything read from YAML: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=BaseModel)


def read(path: Path, model: type[Model], error: type[UserError]) -> Model:
    """Reads and checks one YAML file.

    Args:
        path: The file.
        model: The schema.
        error: The class of error to raise.

    Raises:
        UserError: As ``error``, when the file is missing, is no YAML or breaks the schema; it names
            line and column and, for an unknown key, the nearest one known.
    """
    return validate(load(path, error), model, error, path)


def load(path: Path, error: type[UserError]) -> Any:
    """Loads YAML as round-trip data, which remembers the line and column of every key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"there is no file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as failure:
        raise error(f"cannot read {str(path)!r}: {failure}") from None
    try:
        data = YAML(typ="rt").load(text)
    except MarkedYAMLError as failure:
        mark = failure.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise error(f"not valid YAML: {failure.problem}", where=place) from None
    return {} if data is None else data


def validate(data: Any, model: type[Model], error: type[UserError], path: Path) -> Model:
    """Checks round-trip data against a schema; the file's path is for the error alone."""
    if not isinstance(data, Mapping):
        raise error("the file must hold keys and values", where=f"{path}:1:1")
    try:
        return model.model_validate(plain(data))
    except ValidationError as failure:
        # A misspelt key is both unknown and missing: the unknown one says more.
        first = min(failure.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
        location = [part for part in first["loc"] if not _is_branch(part)]
        where = f"{path}{position(data, location)}"
        key = ".".join(str(part) for part in location)
        if first["type"] == "extra_forbidden":
            raise error(
                f"unknown key {location[-1]!r}",
                where=where,
                nearest=nearest(str(location[-1]), _keys(model, location[:-1])),
            ) from None
        if first["type"] == "missing":
            raise error(f"the key {key!r} is missing", where=where) from None
        message = first["msg"].removeprefix("Value error, ")
        raise error(f"{key}: {message[0].lower()}{message[1:]}", where=where) from None


def plain(data: Any) -> Any:
    """Turns round-trip data into plain dictionaries, lists and scalars."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    for kind in (bool, int, float, str):
        if isinstance(data, kind):
            return kind(data)
    return data


def position(data: Any, location: list[Any]) -> str:
    """Returns ``":line:column"`` of the deepest key of a location that the data hold."""
    place = ""
    for part in location:
        marks = getattr(data, "lc", None)
        if marks is None:
            break
        try:
            line, column = marks.key(part) if isinstance(data, Mapping) else marks.item(part)
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
        place = f":{line + 1}:{column + 1}"
    return place or ":1:1"


def _is_branch(part: Any) -> bool:
    """Whether part of a pydantic location names a union's branch rather than a key."""
    return isinstance(part, str) and (part.startswith(("function-", "tagged-")) or "[" in part)


def _keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Lists the keys that the schema knows at a location."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            continue  # a key of a mapping: its value's schema is already the current one
        current = _schema_in(fields[part].annotation)
    return [field.alias or name for name, field in getattr(current, "model_fields", {}).items()]


def _schema_in(annotation: Any) -> Any:
    """Finds the schema inside an annotation such as ``dict[str, Schema] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (found := _schema_in(inner)) is not None:
            return found
    return None
