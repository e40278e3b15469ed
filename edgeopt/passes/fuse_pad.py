"""Fuse zero padding into the convolution or average pool that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import Result, constant, opset, rule
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion


@rule("Pad -> Conv")
def pad_into_conv(pad: ir.Node, conv: ir.Node) -> Result:
    """Adds the padding to the convolution's own."""
    return _with_pads(pad, conv)


@rule("Pad -> AveragePool")
def pad_into_average_pool(pad: ir.Node, pool: ir.Node) -> Result:
    """Adds the padding to the pool's own, which counts padded zeros."""
    own = any(pool.attributes.get_ints("pads", ()))
    counts = pool.attributes.get_int("count_include_pad", 0)
    if own and not counts:
        return NoMatch("the pool leaves its own padding out of the average")
    if pool.attributes.get_int("ceil_mode", 0):
        return NoMatch("the pool rounds its size up")
    if opset(pool) < 7:
        return NoMatch(f"counting padded zeros needs opset 7, the model has {opset(pool)}")
    result = _with_pads(pad, pool)
    if isinstance(result, ir.Node):
        kernel = pool.attributes.get_ints("kernel_shape", ())
        pads = result.attributes.get_ints("pads", ())
        if any(size >= window for size, window in zip(pads, [*kernel, *kernel], strict=False)):
            return NoMatch("the padding is not smaller than the window")
        result.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    return result


def _with_pads(pad: ir.Node, reader: ir.Node) -> ir.Node | NoMatch | None:
    if reader.inputs[0] is not pad.outputs[0]:
        return None
    if pad.attributes.get_string("mode", "constant") != "constant":
        return NoMatch(f"the padding is not constant but {pad.attributes.get_string('mode', '')}")
    if reader.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return NoMatch("the reader pads by a rule (auto_pad)")
    pads = _pads(pad)
    if isinstance(pads, NoMatch):
        return pads
    begins, ends = pads
    if any(size < 0 for size in begins + ends):
        return NoMatch("the padding is negative: it cuts off")
    if any(begins[:2]) or any(ends[:2]):
        return NoMatch("batch or channels are padded")
    spatial = len(begins) - 2
    own = reader.attributes.get_ints("pads", ()) or (0,) * (2 * spatial)
    total = [one + two for one, two in zip([*begins[2:], *ends[2:]], own, strict=True)]
    attributes = {key: item for key, item in reader.attributes.items() if key not in ("pads", "auto_pad")}
    attributes["pads"] = ir.AttrInt64s("pads", total)
    return ir.Node("", reader.op_type, [pad.inputs[0], *reader.inputs[1:]], list(attributes.values()))


def _pads(pad: ir.Node) -> tuple[list[int], list[int]] | NoMatch:
    """The padding before and after each axis."""
    if opset(pad) < 11:
        flat = list(pad.attributes.get_ints("pads", ()))
        fill, axes = pad.attributes.get_float("value", 0.0), None
    else:
        numbers = constant(pad.inputs[1])
        if numbers is None:
            return NoMatch("the padding is computed")
        flat = [int(size) for size in numbers]
        fill, axes = 0.0, None
        if len(pad.inputs) > 2 and pad.inputs[2] is not None:
            given = constant(pad.inputs[2])
            if given is None:
                return NoMatch("the padded value is computed")
            fill = float(given.reshape(-1)[0]) if given.size else 0.0
        if len(pad.inputs) > 3 and pad.inputs[3] is not None:
            axes = constant(pad.inputs[3])
            if axes is None:
                return NoMatch("the padded axes are computed")
    if fill != 0:
        return NoMatch(f"it pads with {fill:g}, not with 0")
    half = len(flat) // 2
    if axes is None:
        return flat[:half], flat[half:]
    rank = len(dims(pad.outputs[0]) or ())
    if not rank:
        return NoMatch("the rank of the padded value is not known")
    begins, ends = [0] * rank, [0] * rank
    for place, axis in enumerate(int(item) for item in axes):
        begins[axis], ends[axis] = flat[place], flat[half + place]
    return begins, ends


@dataclass(frozen=True)
class FusePad(Fusion):
    """Fuse zero padding into the Conv or AveragePool that reads it."""

    name: ClassVar[str] = "fuse-pad"
    patterns = (pad_into_conv, pad_into_average_pool)
