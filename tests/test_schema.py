from pathlib import Path

import pytest
from pydantic import Field

from edgeopt import schema
from edgeopt.errors import RecipeError, UserError


class Inner(schema.Schema):
    colour: str
    count: int = Field(default=1, gt=0)


class Outer(schema.Schema):
    name: str
    parts: dict[str, Inner] = {}
    sizes: list[int] = []


def read(path: Path, text: str) -> Outer:
    path.write_text(text, encoding="utf-8")
    return schema.read(path, Outer, RecipeError)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.yaml"


def test_a_valid_file_becomes_the_schema(path: Path) -> None:
    outer = read(path, "name: a\nparts: {one: {colour: red}}\nsizes: [1, 2]\n")
    assert outer == Outer(name="a", parts={"one": Inner(colour="red")}, sizes=[1, 2])


@pytest.mark.parametrize(
    ("text", "sentence", "place"),
    [
        ("name: a\nsises: [1]\n", "unknown key 'sises'", ":2:1"),
        ("name: a\nparts:\n  one:\n    color: red\n    colour: red\n", "unknown key 'color'", ":4:5"),
        ("sizes: [1]\n", "the key 'name' is missing", ":1:1"),
        ("name: a\nparts:\n  one: {count: 2}\n", "the key 'parts.one.colour' is missing", ":3:3"),
        ("name: a\nsizes:\n  - 1\n  - two\n", "sizes.1:", ":4:5"),
        ("name: a\nparts: {one: {colour: red, count: 0}}\n", "parts.one.count:", ":2:28"),
        ("name: a\nsizes: [1\n", "not valid YAML", ":3:1"),
        ("- name\n", "the file must hold keys and values", ":1:1"),
    ],
)
def test_an_error_has_its_line_and_column(path: Path, text: str, sentence: str, place: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(path, text)
    assert sentence in caught.value.message
    assert caught.value.where == f"{path}{place}"
    assert caught.value.exit_code == 2


def test_an_unknown_key_names_its_nearest_neighbour(path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(path, "name: a\nparts: {one: {color: red}}\n")
    assert caught.value.nearest[0] == "colour"


def test_a_missing_file_and_binary_garbage_are_one_sentence(path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no file"):
        schema.read(path, Outer, RecipeError)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="cannot read"):
        schema.read(path, Outer, RecipeError)


def test_what_was_read_cannot_be_changed(path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(path, "name: a\n").name = "b"  # type: ignore[misc]
