"""The damage that single layers and groups of layers do at the outputs, in one pass over the data.

The float model is walked through once, with all calls side by side. Where a layer comes up, what the float
model computed so far is there, so that with this layer (or with a group that begins here) quantized only the
rest of the model is run. Memory is that of one cut through the graph for each call, and of one such rest,
which shares its weights with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.errors import RuntimeFailure
from edgeopt.fidelity import Fidelity
from edgeopt.graph.execute import Executor, first_line
from edgeopt.graph.quantization import dequantize_array, quantize_array, write
from edgeopt.graph.region import feeds_of, open_session, part
from edgeopt.passes._blocks import varying
from edgeopt.passes._islands import Quantization
from edgeopt.passes._walk import Lane, Values, lane, segments


def alone(
    plain: ir.Model,
    trials: Sequence[Quantization],
    calls: Sequence[Mapping[str, np.ndarray]],
    watch: Callable[[Iterable[int], str, int], Iterable[int]] | None = None,
) -> list[Fidelity]:
    """Compares the outputs of a model with those where some layers alone are quantized.

    Args:
        plain: The model in float; its nodes have unique names.
        trials: What is quantized in each comparison, for example ``Islands.of`` some layers.
        calls: The inputs of every call.
        watch: Shows progress over the parts of the model.

    Raises:
        RuntimeFailure: onnxruntime cannot run the model.
    """
    with Executor(plain, optimize=True) as executor:
        wanted = [executor.run(call) for call in calls]
    places = segments(plain)
    where = {name: index for index, names in enumerate(places) for name in names}
    waiting: dict[int, list[int]] = {}
    for number, params in enumerate(trials):
        waiting.setdefault(
            min((where.get(name, 0) for name in _readers(plain, params)), default=0), []
        ).append(number)
    found = [Fidelity() for _ in trials]
    walk = lane(plain, calls)
    indices = range(len(places))
    for index in watch(indices, "sensitivity of layers", len(places)) if watch else indices:
        for number in waiting.get(index, ()):
            rest = _Rest(quantized(plain, trials[number]), walk)
            for expected, call in zip(wanted, walk.calls, strict=True):
                found[number].add(expected, rest.run(call))
        if index < max(waiting, default=0):
            walk.advance(places[index])
    return found


def _readers(plain: ir.Model, params: Quantization) -> Iterator[str]:
    """Names the nodes that read something quantized, and makers of quantized outputs of the model."""
    everyone = {where.value for where in params if where.readers is None}
    given = {where.value for where in params if any(not name for name, _ in where.readers or ())} | everyone
    for where in params:
        yield from (name for name, _ in where.readers or () if name)
    for node in plain.graph:
        read = any(value is not None and value.name in everyone for value in node.inputs)
        if read or any(value.is_graph_output() and value.name in given for value in node.outputs):
            yield node.name or ""


class _Rest:
    """What a model still has to compute at a place of a walk."""

    def __init__(self, model: ir.Model, walk: Lane) -> None:
        done = set(walk.nodes) - walk.left
        moving = {node.name for node in varying(model.graph)}
        known = {node.name for node in model.graph if node.name not in moving}
        rest = [node for node in model.graph if node.name not in done or node.name in known]
        self.outputs = [value.name or "" for value in model.graph.outputs]
        try:
            proto, fed = part(model.graph.outputs, rest, model)
            self.session = open_session(proto) if proto.graph.output else None
        except Exception as failure:  # onnxruntime raises a class of its own per status code
            raise RuntimeFailure(f"onnxruntime cannot load a part: {first_line(failure)}") from failure
        self.constants = feeds_of(fed)
        self.made = [output.name for output in proto.graph.output]
        self.inputs = [item.name for item in proto.graph.input if item.name not in fed]

    def run(self, call: Values) -> Values:
        found = {name: call[name] for name in self.outputs if name not in self.made}
        if self.session is not None:
            try:
                feeds = {**self.constants, **{name: call[name] for name in self.inputs}}
                found.update(zip(self.made, self.session.run(self.made, feeds), strict=True))
            except Exception as failure:
                raise RuntimeFailure(f"onnxruntime fails to run a part: {first_line(failure)}") from failure
        return found


def quantized(plain: ir.Model, params: Quantization) -> ir.Model:
    """A copy with its activations quantized, and constants rounded once."""
    model = plain.clone()
    constants = model.graph.initializers
    rounded = {
        where.value: chain[0]
        for where, chain in params.items()
        if where.value in constants and len(chain) == 1 and chain[0].scale is not None
    }
    whole = {where.value for where in params if where.readers is None}
    for name, chosen in rounded.items():
        tensor = constants[name].const_value
        if name in whole and tensor is not None:
            array = dequantize_array(quantize_array(tensor.numpy(), chosen), chosen)
            constants[name].const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    left = {where: chain for where, chain in params.items() if where.value not in rounded}
    left.update({w: c for w, c in params.items() if w.value in rounded and w.value not in whole})
    write(model, left)
    return model
