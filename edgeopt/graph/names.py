"""The user's own names of nodes, carried through every rewrite.

A node that replaces others keeps their names in ``metadata_props`` under one key, as a JSON list, so
``keep_float``, diff, explain and per-layer reports always speak of the model that the user knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import onnx_ir as ir

from edgeopt.graph.traversal import all_nodes

__all__ = ["ORIGINAL_NAMES", "all_nodes", "carry_names", "name_nodes", "original_names", "site_of", "unique"]

ORIGINAL_NAMES = "edgeopt.original_names"
"""The key in ``metadata_props``."""


def name_nodes(model: ir.Model) -> None:
    """Gives every node of the model, its subgraphs and functions a unique name, in place.

    A node that has a unique name keeps it. Others are named after their operator and the first value
    that they make (``Conv:features.1``), which does not change when nodes are added elsewhere.
    """
    taken: set[str] = set()
    unnamed: list[ir.Node] = []
    for node in all_nodes(model):
        if node.name and node.name not in taken:
            taken.add(node.name)
        else:
            unnamed.append(node)
    for node in unnamed:
        first = next((output.name for output in node.outputs if output.name), "")
        node.name = unique(f"{node.op_type}:{first}" if first else node.op_type, taken)
        taken.add(node.name)


def original_names(node: ir.Node) -> tuple[str, ...]:
    """Returns the names in the user's model that a node stands for, its own where it was never rewritten."""
    carried = node.metadata_props.get(ORIGINAL_NAMES)
    if carried is None:
        return (node.name,) if node.name else ()
    return tuple(json.loads(carried))


def site_of(node: ir.Node) -> str:
    """The last of a node's original names: what reports call the place of a rewrite."""
    names = original_names(node)
    return names[-1] if names else node.name or node.op_type


def carry_names(replaced: Iterable[ir.Node], new: ir.Node) -> None:
    """Records on a new node the original names of all nodes that it replaces."""
    names = dict.fromkeys(name for node in replaced for name in original_names(node))
    new.metadata_props[ORIGINAL_NAMES] = json.dumps(list(names))


def unique(name: str, taken: set[str]) -> str:
    """Returns the name, with the first number behind it that makes it unused."""
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
