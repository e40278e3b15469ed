"""Nothing before the judge can reach evaluation data."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from edgeopt.data import DataSpec, Evaluation, open_data
from edgeopt.evaluate import judge
from edgeopt.passes.base import FACETS, Context, Facets
from edgeopt.session import Session, TensorSpec


class Identity(Session):
    inputs = (TensorSpec("x", "float32", ("batch", 3)),)
    outputs = (TensorSpec("y", "float32", ("batch", 3)),)

    def run(self, feeds):
        return {"y": feeds["x"]}


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    np.savez(tmp_path / "d.npz", x=np.eye(30, 3, dtype=np.float32))
    found = open_data(DataSpec(path=str(tmp_path / "d.npz")), Identity.inputs).evaluate
    assert found is not None
    return found


def test_evaluation_shows_only_its_digest_and_length(evaluation: Evaluation) -> None:
    shown = {name for name in dir(evaluation) if not name.startswith("_")}
    assert shown == {"digest", "opened"}
    assert len(evaluation) == 24
    held = [getattr(evaluation, name) for name in Evaluation.__slots__ if name != "__weakref__"]
    assert all(isinstance(value, (str, int)) for value in held)
    assert not hasattr(evaluation, "__dict__")


def test_the_context_has_no_handle_on_it() -> None:
    served = {field.name for field in dataclasses.fields(Facets)}
    assert served == set(FACETS)
    assert not any("eval" in name for name in [*served, *dir(Context)])


def test_only_the_judge_opens_it() -> None:
    root = Path(edgeopt.__file__).parent
    openers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
            if name in ("unseal", "_SEALED"):
                openers.add(path.relative_to(root).as_posix())
    assert openers == {"evaluate.py", "data/evaluation.py"}


def test_the_judge_opens_it_once(evaluation: Evaluation) -> None:
    assert evaluation.opened == 0
    judge(Identity(), Identity(), evaluation)
    assert evaluation.opened == 1
