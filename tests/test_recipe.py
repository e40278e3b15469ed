"""Recipes: every error has a line, a column and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt.errors import RecipeError
from edgeopt.recipe import read_recipe

GOOD = """\
recipe: 1
models:
  kws:
    path: kws.onnx
    budget: {size: 2 MiB}
  text:
    path: text.onnx
devices: [raspberry-pi-4, generic-armv8]
data: data/
budget:
  size: 3 MiB
  accuracy_drop: 1 pp
passes:
  - simplify
  - quantize: {scheme: static-int8}
overrides:
  generic-armv8:
    quantize: {scheme: float16}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_whole_recipe_is_read(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD)).recipe
    kws = recipe.models["kws"]
    assert [(budget.quantity, budget.limit) for budget in recipe.budgets(kws)] == [
        ("size", 2 * 2**20),
        ("accuracy_drop", 1.0),
    ]
    assert recipe.steps(kws, "raspberry-pi-4") == [("simplify", {}), ("quantize", {"scheme": "static-int8"})]
    assert recipe.steps(kws, "generic-armv8") == [("simplify", {}), ("quantize", {"scheme": "float16"})]


@pytest.mark.parametrize(
    ("old", "new", "where", "sentence"),
    [
        ("devices:", "device:", ":8:1", "unknown key 'device'"),
        ("  size: 3 MiB", "  size: 3", ":11:3", "has no unit"),
        ("  size: 3 MiB", "  sise: 3 MiB", ":11:3", "unknown key 'sise'"),
        ("    path: text.onnx", "    pth: text.onnx", ":7:5", "unknown key 'pth'"),
        ("  - simplify", "  - [simplify]", ":13:1", "each pass is a name"),
        ("  generic-armv8:\n", "  jetson-nano:\n", ":1:1", "not among the devices"),
        ("recipe: 1", "recipe: 2", ":1:1", "recipe"),
        ("data: data/", "data: {calibrate: {samples: 5}}", ":9:1", "calibrate has no path"),
    ],
)
def test_an_error_names_its_place(tmp_path: Path, old: str, new: str, where: str, sentence: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(tmp_path, GOOD.replace(old, new)))
    assert sentence in caught.value.message
    assert f"recipe.yaml{where}" in (caught.value.where or "")


def test_an_unknown_key_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(tmp_path, GOOD.replace("devices:", "device:")))
    assert caught.value.nearest[0] == "devices"


def test_broken_yaml_has_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(tmp_path, "recipe: 1\nmodels: [a\n"))
    assert "not valid YAML" in caught.value.message
    assert "recipe.yaml:" in (caught.value.where or "")


def test_settings_replace_values(tmp_path: Path) -> None:
    file = read_recipe(
        write(tmp_path, GOOD),
        ["budget.size=1 MiB", "devices.0=raspberry-pi-5", "passes.1.quantize.scheme=float16", "seed=7"],
    )
    assert file.recipe.budget.size == "1 MiB"
    assert file.recipe.devices == ["raspberry-pi-5", "generic-armv8"]
    assert file.recipe.passes is not None
    assert file.recipe.passes[1] == {"quantize": {"scheme": "float16"}}
    assert file.recipe.seed == 7


@pytest.mark.parametrize("setting", ["budget", "=3", "devices.9=x"])
def test_a_wrong_setting_is_one_sentence(tmp_path: Path, setting: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        read_recipe(write(tmp_path, GOOD), [setting])
