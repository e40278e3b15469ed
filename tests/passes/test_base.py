from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from edgeopt import passes
from edgeopt.errors import UserError
from edgeopt.passes.base import FACETS, Change, Context, Facet, Facets, Pass, UndeclaredFacet
from edgeopt.platform import load_platform


@dataclass(frozen=True)
class Curious(Pass):
    """Reads one facet.

    Attributes:
        facet: The facet that it reads.
        declared: The facets that it declares.
    """

    name: ClassVar[str] = "curious"
    facet: Facet = "rules"
    declared: tuple[Facet, ...] = ()

    @property
    def reads(self) -> frozenset[Facet]:
        """The declared facets."""
        return frozenset(self.declared)

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Reads the facet."""
        return Change(summary=str(getattr(context, self.facet) is not None))


MODEL = ir.from_onnx_text(
    '<ir_version: 10, opset_import: ["" : 21]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
)


def context_for(step: Pass, facets: Facets) -> Context:
    return Context(facets, reads=step.reads)


@pytest.mark.parametrize("facet", FACETS)
def test_a_facet_that_a_pass_did_not_declare_cannot_be_read(facet: Facet) -> None:
    others = tuple(other for other in FACETS if other != facet)
    step = Curious(facet=facet, declared=others)
    with pytest.raises(UndeclaredFacet, match=facet):
        step.apply(MODEL, context_for(step, Facets()))


@pytest.mark.parametrize("facet", FACETS)
def test_a_declared_facet_that_is_absent_is_none(facet: Facet) -> None:
    step = Curious(facet=facet, declared=(facet,))
    assert step.apply(MODEL, context_for(step, Facets())).summary == "False"


def test_a_declared_facet_is_served() -> None:
    step = Curious(facet="rules", declared=("rules",))
    facets = Facets(rules=load_platform("raspberry-pi-4").rules)
    assert step.apply(MODEL, context_for(step, facets)).summary == "True"


def test_a_context_has_no_handle_on_evaluation_data() -> None:
    names = {name for name in dir(Context) if not name.startswith("_")} | set(Facets.__dataclass_fields__)
    assert not [name for name in names if "eval" in name]


def test_the_limit_lets_the_first_rewrites_through() -> None:
    context = Context(limit=2)
    assert [context.allow("rule", f"site {number}") for number in range(4)] == [True, True, False, False]


def test_an_unknown_option_names_its_neighbour() -> None:
    with pytest.raises(UserError) as caught:
        Curious.from_options({"facets": "rules"})
    assert caught.value.nearest == ("facet",)


def test_options_make_the_same_pass_again() -> None:
    step = Curious(facet="budget", declared=("budget", "rules"))
    assert Curious.from_options(step.options()) == step


def test_an_unknown_pass_names_its_neighbour() -> None:
    with pytest.raises(UserError) as caught:
        passes.find("simplfy")
    assert "simplify" in caught.value.nearest


@pytest.mark.parametrize("name", passes.names())
def test_every_pass_is_found_by_its_name(name: str) -> None:
    kind = passes.find(name)
    assert kind.name == name
    assert (kind.__doc__ or "").strip()
