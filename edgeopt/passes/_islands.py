"""What is left of a model's integers when some layers compute in float.

A layer in float reads floats. Operators between layers (sums, gates, pools, views) run in integers only where
all that was quantized for them still is, some of it comes out of an integer kernel, and somebody takes their
result in integers. Where a layer beside them returns to float they return with it, or quantizing for them
would be a conversion that buys nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import onnx_ir as ir

from edgeopt.graph.quantization import QuantParams, Site
from edgeopt.graph.traversal import read_by

Quantization = Mapping[Site, list[QuantParams]]

Read = tuple[str, str, int]
"""One reading of a value: its name, the reading node's name ("" for the graph's outputs) and input index."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})

ACTIVATIONS = ("Relu", "Clip", "LeakyRelu")
"""What runs in the kernel of the layer before it."""


class Islands:
    """A model's quantization as single readings of values, and which of them serve an integer kernel.

    Args:
        model: The model without quantization; its nodes have unique names.
        params: Its quantization.
    """

    def __init__(self, model: ir.Model, params: Quantization) -> None:
        graph = model.graph
        self.params = params
        self.nodes = {node.name or "": node for node in graph}
        self.values = {value.name or "": value for value in (*graph.inputs, *graph.initializers.values())}
        self.values.update((output.name or "", output) for node in graph for output in node.outputs)
        self.outputs = list(graph.outputs)
        self.reads = {(where.value, *reader) for where in params for reader in self._readers(where)}
        self.sited = {where.value for where in params}
        self.asked: dict[str, list[Read]] = {name: [] for name in self.nodes}
        for read in sorted(self.reads):
            if read[1]:
                self.asked.setdefault(read[1], []).append(read)
        self.exempt: frozenset[Read] = frozenset()
        self.exempt = frozenset(self.reads) - self._left(frozenset())

    @property
    def layers(self) -> list[str]:
        """The nodes with a quantized constant, and quantized products of two activations, in order."""
        constants = {name for name in self.sited if self.values[name].is_initializer()}
        return [
            name
            for name, node in self.nodes.items()
            if any(value is not None and value.name in constants for value in node.inputs)
            or (node.op_type in PRODUCTS and self.asked[name])
        ]

    def without(self, nodes: Iterable[str]) -> dict[Site, list[QuantParams]]:
        """Returns the parameters that are left when some nodes compute in float."""
        gone = frozenset(nodes)
        return self._sites(self._left(gone)) if gone else dict(self.params)

    def of(self, nodes: Iterable[str]) -> dict[Site, list[QuantParams]]:
        """Returns the parameters that are gone when some nodes compute in float."""
        return self._sites(self.gone(nodes))

    def gone(self, nodes: Iterable[str]) -> frozenset[Read]:
        """Returns the readings that are of floats when some nodes compute in float."""
        return frozenset(self.reads) - self._left(frozenset(nodes))

    def _sites(self, reads: Set[Read]) -> dict[Site, list[QuantParams]]:
        found: dict[Site, list[QuantParams]] = {}
        for where, chain in self.params.items():
            readers = self._readers(where)
            kept = tuple(reader for reader in readers if (where.value, *reader) in reads)
            if len(kept) == len(readers):
                found[where] = chain
            elif kept:
                found[Site(where.value, kept)] = chain
        return found

    def _readers(self, where: Site) -> tuple[tuple[str, int], ...]:
        """The readings that a site stands for."""
        if where.readers is not None:
            return where.readers
        value = self.values[where.value]
        found = [(use.node.name or "", use.idx) for use in value.uses()]
        found += [("", index) for index, output in enumerate(self.outputs) if output is value]
        return tuple(sorted(found))

    def _left(self, gone: Set[str]) -> frozenset[Read]:
        """Returns the readings that still serve when some nodes compute in float, or never did."""
        reads = frozenset(read for read in self.reads if read[1] not in gone and not self._from(read, gone))
        while True:
            integer = self._integer(reads, gone)
            kept = frozenset(
                read
                for read in reads
                if read in self.exempt
                or (read[1] in integer if read[1] else self._made(self.values[read[0]], integer))
            )
            if kept == reads:
                return kept
            reads = kept

    def _from(self, read: Read, gone: Set[str]) -> bool:
        """Whether a layer in float makes what an operator between layers reads, or the model gives out."""
        node = self.values[read[0]].producer()
        if node is not None and node.op_type in ACTIVATIONS and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        reader = self.nodes.get(read[1])
        return node is not None and node.name in gone and (reader is None or not self._is_product(reader))

    def _integer(self, reads: Set[Read], gone: Set[str]) -> set[str]:
        """The nodes that run in integers with these readings quantized."""
        taken = self._taken(reads, gone)
        found: set[str] = set()
        for name, node in self.nodes.items():
            if name in gone:
                continue
            asked = self.asked[name]
            whole = all(read in reads for read in asked)
            if self._is_product(node):
                if any(read in reads for read in asked):
                    found.add(name)
            elif whole and name in taken and any(self._made(value, found) for value in read_by(node)):
                found.add(name)
        return found

    def _taken(self, reads: Set[Read], gone: Set[str]) -> set[str]:
        """The nodes whose result is wanted in integers, or never was quantized."""
        wanted = {read[0] for read in reads}
        taken: set[str] = set()
        for name, node in reversed(self.nodes.items()):
            outputs = [output for output in node.outputs if output.name]
            sited = [output for output in outputs if output.name in self.sited]
            inside = [use.node.name for output in outputs for use in output.uses() if output not in sited]
            followed = [reader for reader in inside if reader in self.nodes and reader not in gone]
            if any(output.name in wanted for output in sited) or (
                not sited and (not followed or any(reader in taken for reader in followed))
            ):
                taken.add(name)
        return taken

    def _made(self, value: ir.Value, integer: Set[str]) -> bool:
        """Whether a value comes out of an integer kernel."""
        node = value.producer()
        return node is not None and (node.name or "") in integer

    def _is_product(self, node: ir.Node) -> bool:
        """Whether a node is worth integers wherever it stands."""
        if node.op_type in PRODUCTS:
            return True
        asked = self.asked[node.name or ""]
        return bool(asked) and all(self.values[read[0]].is_initializer() for read in asked)
