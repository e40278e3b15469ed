"""The rooms of the house: a module imports only from its own room or from lower ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgeopt

ROOMS: list[set[str]] = [
    {"errors", "_late_imports", "watch"},
    {"units", "intervals", "host"},
    {"schema", "user_code"},
    {"evidence"},
    {"budget", "fidelity"},
    {"session", "cores"},
    {"platform"},
    {"lint"},
    {"data", "metrics", "preprocess", "harness", "example"},
    {"recipe"},
    {"load"},
    {"graph"},
    {"steps"},
    {"predict"},
    {"passes"},
    {"targets"},
    {"inspection", "diff", "optimization"},
    {"conversion"},
    {"artifact", "golden"},
    {"runners", "footprint"},
    {"benchmark", "evaluate", "judgement"},
    {"job", "outcome", "stepping", "recording"},
    {"corridor"},
    {"writing", "judging"},
    {"compilation", "bisecting"},
    {"choosing"},
    {"search"},
    {"report"},
    {"cli"},
    {"", "__main__"},  # the public names
]
"""From the lowest to the highest."""

PACKAGE = Path(edgeopt.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> int:
    """The place of a module, given as ``graph.cost`` or "" for the package itself."""
    name = module.split(".")[0]
    for place, rooms in enumerate(ROOMS):
        if name in rooms:
            return place
    raise AssertionError(f"edgeopt.{name} belongs to no room: add it to ROOMS")


def imported(path: Path) -> set[str]:
    """The modules of edgeopt that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            submodules = {f"{node.module}.{name.name}" for name in node.names}
            modules = {name for name in submodules if _is_module(name)}
            found |= modules if node.module == "edgeopt" else {node.module, *modules}
    return {name.removeprefix("edgeopt").removeprefix(".") for name in found if name.startswith("edgeopt")}


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_its_own_room_and_lower_ones(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix("__init__")
    higher = {name for name in imported(path) if room(name) > room(own.strip("."))}
    assert not higher, f"{own} imports from higher rooms: {', '.join(sorted(higher))}"


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import edgeopt.errors\nfrom edgeopt import units, __version__\n"
        "def function():\n    from edgeopt.graph.cost import cost\n    from edgeopt.graph import memory\n"
    )
    assert imported(source) == {"errors", "units", "graph.cost", "graph", "graph.memory"}
    assert room("graph.cost") > room("errors")
