"""The commands that look inside: inspect, diff, devices, passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt import example

Command = Callable[..., Any]

MODEL = Path(example.__file__).with_name("model.onnx")


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The built-in model with one weight changed."""
    model = ir.load(MODEL)
    name, value = next(
        (name, value)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and len(list(value.const_value.shape)) == 4
    )
    weight = np.array(value.const_value.numpy())  # type: ignore[union-attr]
    weight[0] *= 1.5
    value.const_value = ir.tensor(weight, name=name)
    path = tmp_path / "changed.onnx"
    ir.save(model, path)
    return path


def test_inspect_fits_into_100_columns(edgeopt: Command) -> None:
    ran = edgeopt("inspect", MODEL, "--device", "raspberry-pi-4", "--layers", "all")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 100
    for word in (
        "parameters",
        "multiply-accumulates",
        "peak activations",
        "predicted for raspberry-pi-4",
        "Conv",
    ):
        assert word in ran.out


def test_inspect_gives_every_figure_as_json(edgeopt: Command) -> None:
    data = edgeopt("inspect", MODEL, "--device", "raspberry-pi-5", "--json").json()
    assert data["macs"] == sum(layer["macs"] * layer["repeats"] for layer in data["layers"])
    assert data["bytes"] >= data["parameters"] > 0
    assert data["peak_activation_bytes"] > 0
    assert data["latency"]["how"] == "predicted"
    assert data["cannot_run"] == []
    seconds = [layer["predicted_seconds"] for layer in data["layers"]]
    assert sum(seconds) == pytest.approx(data["latency"]["value"])


def test_without_a_device_nothing_is_predicted(edgeopt: Command) -> None:
    data = edgeopt("inspect", MODEL, "--json").json()
    assert data["latency"] is data["peak_memory"] is data["cannot_run"] is None
    assert "predicted" not in edgeopt("inspect", MODEL).out


def test_inspect_filters_nodes_and_knows_no_match(edgeopt: Command) -> None:
    layers = edgeopt("inspect", MODEL, "--json").json()["layers"]
    name = next(layer["name"] for layer in layers if layer["op_type"] == "Conv")
    chosen = edgeopt("inspect", MODEL, "--nodes", name, "--json").json()["layers"]
    assert name in [layer["name"] for layer in chosen]
    assert len(chosen) < len(layers)
    ran = edgeopt("inspect", MODEL, "--nodes", "/no/such/*")
    assert ran.code == 2
    assert "no node matches '/no/such/*'" in ran.err


def test_inspect_binds_shapes(edgeopt: Command) -> None:
    once = edgeopt("inspect", MODEL, "--json").json()
    name, text = next(iter(once["inputs"].items()))
    sizes = [part if part.isdigit() else "4" for part in text.split("[")[1].rstrip("]").split(", ")]
    four = edgeopt("inspect", MODEL, "--shape", f"{name}={','.join(sizes)}", "--json").json()
    assert four["macs"] == 4 * once["macs"]
    assert once["assumed"]
    assert not four["assumed"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shape", "x"], "is not of the form NAME=1,3,224,224"),
        (["--shape", "nothing=1,2"], "the model has no input 'nothing'"),
        (["--device", "raspbery-pi-4"], "there is no device 'raspbery-pi-4'"),
        (["--layers", "some"], "is neither a number nor 'all'"),
    ],
)
def test_inspect_refuses_in_one_sentence(edgeopt: Command, arguments: list[str], sentence: str) -> None:
    ran = edgeopt("inspect", MODEL, *arguments)
    assert ran.code == 2
    assert sentence in ran.err


def test_a_loop_without_bound_is_named(edgeopt: Command, tmp_path: Path) -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64 n, float[1,8] x) => (float[1,8] y)
        <bool go = {1}>
        {
            y = Loop (n, go, x) <
                body = round (int64 i, bool on, float[1,8] v) => (bool still, float[1,8] next)
                { still = Identity(on)  next = Relu(v) }
            >
        }
    """)
    ir.save(model, tmp_path / "loop.onnx")
    ran = edgeopt("inspect", tmp_path / "loop.onnx")
    assert "runs as often as its data say; counted once" in ran.out


def test_diff_finds_no_difference_between_equal_models(edgeopt: Command) -> None:
    ran = edgeopt("diff", MODEL, MODEL)
    assert ran.code == 0
    assert "the graphs are the same" in ran.out
    assert "no tensor differs by more than rounding" in ran.out


def test_diff_names_the_first_layer_that_differs(edgeopt: Command, changed: Path) -> None:
    data = edgeopt("diff", MODEL, changed, "--json").json()
    assert data["first"]["op_type"] == "Conv"
    assert data["worst"]["snr"] <= data["first"]["snr"]
    assert len(data["structure"]["initializers"]) == 1
    assert data["seeded"] is True
    shown = edgeopt("diff", MODEL, changed)
    assert "first to differ" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100


def test_diff_runs_on_given_data(edgeopt: Command, changed: Path) -> None:
    folder = MODEL.parent
    data = edgeopt("diff", MODEL, changed, "--data", folder, "--samples", "3", "--json").json()
    assert (data["samples"], data["seeded"]) == (3, False)


def test_devices_are_listed_and_shown_with_their_sources(edgeopt: Command) -> None:
    listed = edgeopt("devices", "list")
    assert "raspberry-pi-4" in listed.out
    assert max(map(len, listed.out.splitlines())) <= 100
    assert len(edgeopt("devices", "list", "--json").json()["devices"]) >= 10
    shown = edgeopt("devices", "show", "jetson-nano")
    assert "memory.bandwidth" in shown.out
    assert edgeopt("devices", "show", "jetson-nano", "--json").json()["schema"] == 1


def test_lint_exits_by_what_it_finds(edgeopt: Command, tmp_path: Path) -> None:
    assert edgeopt("devices", "lint").code == 0
    path = tmp_path / "board.yaml"
    path.write_text("schema: 1\nname: board\n", encoding="utf-8")
    ran = edgeopt("devices", "lint", path)
    assert ran.code == 2
    assert f"{path}:1:1: the key 'cpu' is missing" in ran.out
    assert edgeopt("devices", "lint", path, "--json").json()["findings"][0]["where"] == f"{path}:1:1"


def test_passes_are_listed_and_shown_with_their_options(edgeopt: Command) -> None:
    listed = edgeopt("passes", "list")
    assert "simplify" in listed.out
    assert max(map(len, listed.out.splitlines())) <= 100
    for item in edgeopt("passes", "list", "--json").json()["passes"]:
        assert item["summary"], item["name"]
        shown = edgeopt("passes", "show", item["name"])
        assert shown.code == 0
        assert item["summary"] in shown.out
        for option in item["options"]:
            assert f"{option['name']}: " in shown.out
    assert edgeopt("passes", "show", "simplfy").code == 2


def test_an_artifact_is_looked_into_under_the_original_names(edgeopt: Command, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    compiled = edgeopt("compile", MODEL, "--device", "raspberry-pi-4", "--data", MODEL.parent, "-o", folder)
    assert compiled.code in (0, 1), compiled.err
    original = edgeopt("inspect", MODEL, "--json").json()
    inside = edgeopt("inspect", folder, "--device", "raspberry-pi-4", "--json").json()
    assert inside["bytes"] < original["bytes"]
    assert inside["peak_activation_bytes"] < original["peak_activation_bytes"]
    names = {name for layer in inside["layers"] for name in layer["original_names"]}
    convolutions = {layer["name"] for layer in original["layers"] if layer["op_type"] == "Conv"}
    assert convolutions <= names
    found = edgeopt("diff", MODEL, folder, "--json").json()
    assert len(found["layers"]) > len(found["outputs"])
    assert {layer["node"] for layer in found["layers"]} <= {layer["name"] for layer in original["layers"]}
