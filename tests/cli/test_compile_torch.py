"""PyTorch models, folded preprocessing, sequences and state, from the command line to the artifact."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.artifact import open_artifact

Edgeopt = Callable[..., Any]
DEVICE = ("--device", "raspberry-pi-4")

NETS = """
import torch
from torch import nn

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.facts = nn.Linear(5, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, image, meta):
        seen = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        both = torch.cat([seen, torch.relu(self.facts(meta))], 1)
        return self.head(both), both

def build():
    torch.manual_seed(1)
    return Classifier(), (torch.ones(2, 3, 16, 16), torch.ones(2, 5))

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x, hidden, cell):
        y, (hidden, cell) = self.lstm(x, (hidden, cell))
        return self.head(y), hidden, cell

def step():
    torch.manual_seed(2)
    return Step(), (torch.ones(1, 1, 6), torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])

def tagger():
    torch.manual_seed(3)
    return Tagger(), (torch.ones(2, 7, dtype=torch.int64),)
"""

HARNESS = """
import numpy as np

def run(sessions, samples):
    (model,) = sessions.values()
    names = [spec.name for spec in model.inputs]
    outputs = [spec.name for spec in model.outputs]
    for sample in samples:
        state = [np.zeros((1, 1, 16), np.float32)] * 2
        marks = []
        for row in sample["x"]:
            found = model.run(dict(zip(names, [row[None, None], *state])))
            state = [found[name] for name in outputs[1:]]
            marks.append(found[outputs[0]].ravel())
        yield {"marks": np.array(marks)}

def closeness(outputs, sample):
    return -float(np.abs(outputs["marks"] - sample["label"]).mean())
"""


@pytest.fixture(autouse=True)
def nets(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The current folder holds the module ``shop_nets``; a fresh import each time."""
    torch.set_num_threads(1)
    Path("shop_nets.py").write_text(NETS)
    Path("shop_harness.py").write_text(HARNESS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("shop_nets", "shop_harness"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(Path.cwd())
    return __import__("shop_nets")


def test_a_module_with_weights_and_several_inputs_and_outputs(
    edgeopt: Edgeopt, nets: Any, torch: Any
) -> None:
    from safetensors.torch import save_file

    module, _ = nets.build()
    with torch.no_grad():
        module.head.bias.add_(3)
    save_file(module.state_dict(), "w.safetensors")
    arguments = ("--torch", "shop_nets:build", "--weights", "w.safetensors", "--scheme", "float16")
    ran = edgeopt("compile", *arguments, *DEVICE, "--json")
    assert ran.code == 0, ran.err
    (outcome,) = ran.json()["outcomes"]
    assert outcome["path"] == "build/shop_nets/raspberry-pi-4/onnxruntime"
    assert outcome["after"]["fidelity"]["value"] > 40
    session = open_artifact(Path(outcome["path"])).open()["model"]
    assert [spec.name for spec in session.inputs] == ["image", "meta"]
    draw = np.random.default_rng(0)
    feeds = {
        "image": draw.standard_normal((2, 3, 16, 16)).astype(np.float32),
        "meta": draw.standard_normal((2, 5)).astype(np.float32),
    }
    wanted = module.eval()(*map(torch.from_numpy, feeds.values()))
    for found, expected in zip(session.run(feeds).values(), wanted, strict=True):
        assert np.abs(found - expected.detach().numpy()).max() < 0.02


def test_an_archive_is_calibrated_and_judged(edgeopt: Edgeopt, nets: Any, torch: Any) -> None:
    module, example = nets.tagger()
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=(batch,)), "tagger.pt2")
    draw = np.random.default_rng(0)
    Path("data").mkdir()
    for part in ("calibration", "evaluation"):
        np.savez(f"data/{part}.npz", ids=draw.integers(0, 20, (60, 7)))
    ran = edgeopt("compile", "tagger.pt2", *DEVICE, "--data", "data", "--json")
    assert ran.code == 0, ran.err
    (outcome,) = ran.json()["outcomes"]
    assert outcome["after"]["fidelity"]["n"] == 60
    assert [verdict["status"] for verdict in outcome["verdicts"]] == ["met"]


def test_state_carried_between_calls_in_a_recipe(edgeopt: Edgeopt, nets: Any, torch: Any) -> None:
    module, _ = nets.step()
    x = np.random.default_rng(0).standard_normal((60, 9, 6)).astype(np.float32)
    with torch.no_grad():
        marks = np.stack(
            [module.eval().head(module.lstm(torch.from_numpy(row)[:, None])[0])[:, 0] for row in x]
        )
    np.savez("clips.npz", x=x, label=marks)
    Path("recipe.yaml").write_text(
        "recipe: 1\n"
        "model: {torch: 'shop_nets:step'}\n"
        "data: {path: clips.npz, harness: 'shop_harness:run', metric: 'shop_harness:closeness'}\n"
        "devices: [raspberry-pi-4]\n"
        "budget: {accuracy_drop: 0.05}\n"
    )
    ran = edgeopt("compile", "recipe.yaml", "--json")
    assert ran.code == 0, ran.err
    (outcome,) = ran.json()["outcomes"]
    assert outcome["name"] == "shop_nets"
    assert abs(outcome["before"]["closeness"]["value"]) < 1e-5
    assert outcome["after"]["closeness"]["n"] == 48
    assert outcome["after"]["accuracy_drop"]["value"] < 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--torch", "shop_nets"), ("package.module:function",)),
        (("--torch", "shop_nets:nope"), ("'shop_nets' has no 'nope'",)),
        (("--torch", "shop_nets:build", "--weights", "gone.safetensors"), ("gone.safetensors",)),
        (("--torch", "shop_nets:build", "--no-code"), ("--no-code",)),
        (("--torch", "shop_nets:build", "model.onnx"), ("not both",)),
        (("gone.pt2",), ("gone.pt2",)),
    ],
)
def test_mistakes_are_one_sentence(
    edgeopt: Edgeopt, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    ran = edgeopt("compile", *arguments, *DEVICE)
    assert ran.code == 2
    assert all(word in ran.err for word in words), ran.err
    assert not Path("build").exists()
