"""Pooling behind a convolution, padded by SAME instead of by an operator of its own.

A pooling of 3 in steps of 2 over an even number of rows, padded by one on either side, reads no row behind
the last, so what counts is one row before the first. SAME pads an even number of rows behind the last only,
but an odd one on both sides. The convolution may make that one more row: whatever stands in it is read by
one more window alone, and that is cut off. The SLICE moves a quarter of what the PAD would.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.graph.names import carry_names
from edgeopt.targets.tflite.legalizations.windows import Window
from edgeopt.targets.tflite.legalize import Splice, legalizes, plain_attributes
from edgeopt.targets.tflite.operators.convolution import same_pads, spatial_pads
from edgeopt.targets.tflite.steps import Step, only_reader, plain

ACTIVATIONS = ("Relu", "Clip")
COPY = 4
"""Multiplications that take as long as moving one element."""


@legalizes("MaxPool")
def pool_one_more(splice: Splice, node: ir.Node) -> bool:
    """Conv, perhaps an activation, MaxPool with pads that are not SAME's: one more row and column."""
    source = node.inputs[0]
    if source is None or len(shape_of(source)) != 4 or len(node.outputs) != 1:
        return False
    window = Window(node, source)
    if any(d != 1 for d in window.dilations):
        return False
    chain = _chain(node)
    sizes = _sizes(window)
    if chain is None or sizes is None or sizes == list(window.sizes):
        return False
    conv = chain[0]
    pads = _pads(conv, sizes)
    if pads is None or not _worth(window, sizes, conv):
        return False
    shape = shape_of(conv.outputs[0])
    attributes = plain_attributes(conv) | {"pads": [*(b for b, _ in pads), *(a for _, a in pads)]}
    attributes.pop("auto_pad", None)
    value = splice.op("Conv", *conv.inputs, shape=(*shape[:2], *sizes), **attributes)
    carry_names([conv], splice.made[-1])
    for activation in chain[1:]:
        value = splice.op(activation.op_type, value, *activation.inputs[1:], shape=(*shape[:2], *sizes))
        carry_names([activation], splice.made[-1])
    sames = [same_pads(*item) for item in zip(sizes, window.kernel, window.strides, strict=True)]
    outs = [-(-size // stride) for size, stride in zip(sizes, window.strides, strict=True)]
    value = splice.op(
        "MaxPool",
        value,
        shape=(*shape[:2], *outs),
        kernel_shape=window.kernel,
        strides=window.strides,
        pads=[*(before for before, _ in sames), *(after for _, after in sames)],
    )
    ends = np.array(window.outs, np.int64)
    value = splice.op("Slice", value, np.zeros(2, np.int64), ends, np.array([2, 3], np.int64))
    splice.replace(value)
    for gone in reversed(chain):
        splice.graph.remove(gone, safe=True)
    return True


def _chain(pool: ir.Node) -> list[ir.Node] | None:
    """The convolution that a pooling alone reads, and the activation between."""
    chain: list[ir.Node] = []
    reader = pool
    while True:
        source = reader.inputs[0]
        node = source.producer() if source is not None else None
        if source is None or node is None or only_reader(source) is not reader:
            return None
        chain.insert(0, node)
        if any(value is not None and plain(value) is None for value in node.inputs[1:]):
            return None
        if node.op_type == "Conv":
            return chain
        if node.op_type not in ACTIVATIONS:
            return None
        reader = node


def _sizes(window: Window) -> list[int] | None:
    """The sizes of input with which SAME pads before the first element as is wanted."""
    found = []
    for n, k, s, (before, _), end in zip(
        window.sizes, window.kernel, window.strides, window.pads, window.ends, strict=True
    ):
        # Where the last window reaches beyond the end, nothing but pads may stand there.
        if end:
            fitting = [n] if same_pads(n, k, s) == (before, end) else []
        else:
            fitting = [size for size in range(n, n + s + 1) if same_pads(size, k, s)[0] == before]
        if not fitting:
            return None
        found.append(fitting[0])
    return found


def _pads(conv: ir.Node, outs: list[int]) -> list[tuple[int, int]] | None:
    """The pads with which a convolution makes so many rows and columns, if it is padded by an operator of its
    own as it is."""
    step = Step(conv, list(conv.inputs), list(conv.outputs))
    sizes, kernel = step.shape()[2:], list(step.shape(1)[2:])
    strides, dilations = step.attribute("strides", [1, 1]), step.attribute("dilations", [1, 1])
    pads = spatial_pads(step, sizes, kernel, strides, dilations)
    sames = [same_pads(*item) for item in zip(sizes, kernel, strides, dilations, strict=True)]
    if pads == sames or not any(map(any, pads)):
        return None
    return [
        (before, (out - 1) * s + (k - 1) * d + 1 - n - before)
        for n, out, k, s, d, (before, _) in zip(sizes, outs, kernel, strides, dilations, pads, strict=True)
    ]


def _worth(window: Window, sizes: list[int], conv: ir.Node) -> bool:
    """Whether the rows and columns more cost less than is moved less."""
    channels = shape_of(conv.outputs[0])[1]
    each = math.prod(Step(conv, list(conv.inputs), []).shape(1)[1:])
    padded = math.prod(
        n + before + end for n, (before, _), end in zip(window.sizes, window.pads, window.ends, strict=True)
    )
    saved = channels * (padded - math.prod(window.outs))
    more = channels * each * (math.prod(sizes) - math.prod(window.sizes))
    return bool(more < COPY * saved)
