"""Training one block of a quantized model against the same block in float.

Weights are learned as ``_learned_weights`` says. Biases move in units of the output's quantization step, so
one rate serves all layers; scales of activations move by factors, with gradients straight through their
rounding (Esser et al., Learned Step Size Quantization, ICLR 2020). The block reads what the quantized
layers before it make, so it learns to make up for their errors too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.autograd import Segment, to_numpy
from edgeopt.graph.autograd.operators import Tensor, require_torch
from edgeopt.graph.placement import is_constant
from edgeopt.graph.quantization import integer_range
from edgeopt.passes._blocks import Block
from edgeopt.passes._learned_weights import Chosen, Learned, Moved, Weight
from edgeopt.platform import QuantizationRules

Values = Mapping[str, Tensor]
"""Values of one call, by name."""


@dataclass(slots=True)
class Trainable:
    """What can be trained in a block, by names of initializers.

    Attributes:
        weights: Quantized weights.
        biases: Float constants that are added or scale: biases, and those of normalizations.
        scales: Scales of activations; those of one tuple are equal and stay so.
    """

    weights: list[Weight] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    scales: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All initializers that are trained."""
        return [
            *(weight.name for weight in self.weights),
            *self.biases,
            *(name for group in self.scales for name in group),
        ]


BIASES = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "Add": (0, 1),
    "Sub": (0, 1),
    "LayerNormalization": (1, 2),
    "GRU": (3,),
    "LSTM": (3,),
}
"""Per operator the inputs whose constants are trained in float."""


def find_trainable(
    graph: ir.Graph, block: Block, taken: set[str], groups: Mapping[str, tuple[str, ...]]
) -> Trainable:
    """Finds what can be trained in a block and is not in ``taken``, and takes it.

    Args:
        graph: The graph.
        block: The block.
        taken: Names of what other blocks have trained already, or must not be trained.
        groups: Per scale that may be trained all scales that must stay equal to it.
    """
    found = Trainable()
    own = set(block.nodes)
    for node in block.nodes:
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if is_constant(value) and index in BIASES.get(node.op_type, ()):
                name = value.name or ""
                alone = all(use.node in own for use in value.uses())
                if name not in taken and alone and value.dtype == ir.DataType.FLOAT and _size(value) > 1:
                    taken.add(name)
                    found.biases.append(name)
            elif (weight := _weight(value)) is not None and weight.name not in taken:
                taken.add(weight.name)
                found.weights.append(weight)
        if node.op_type == "QuantizeLinear" and node.inputs[1] is not None:
            group = groups.get(node.inputs[1].name or "")
            if group is not None and group[0] not in taken:
                taken.update(group)
                found.scales.append(group)
    return found


def scale_groups(model: ir.Model, rules: QuantizationRules | None) -> dict[str, tuple[str, ...]]:
    """Returns per scale of an activation all that are equal to it, since the runtime may tie them.

    Scales that the runtime fixes are left out.
    """
    fixed: set[float] = set()
    if rules is not None:
        tensors = [rules.activation, *(rule.output for rule in rules.operators.values())]
        fixed = {float(np.float32(rule.scale)) for rule in tensors if rule is not None and rule.scale}
    equal: dict[float, dict[str, None]] = {}
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 2:
            continue
        source, scale = node.inputs[0], node.inputs[1]
        if scale is None or not is_constant(scale) or scale.const_value is None or source is None:
            continue
        if is_constant(source) or (source.producer() is not None and _is_weight_pair(node)):
            continue
        if scale.const_value.size == 1:
            number = float(np.float32(scale.const_value.numpy().reshape(-1)[0]))
            if number not in fixed:
                equal.setdefault(number, {})[scale.name or ""] = None
    return {name: tuple(names) for names in equal.values() for name in names}


def _is_weight_pair(node: ir.Node) -> bool:
    """Whether a DequantizeLinear reads a quantized constant."""
    first = node.inputs[0].producer() if node.inputs[0] is not None else None
    source = first.inputs[0] if first is not None and first.op_type == "QuantizeLinear" else None
    return source is not None and is_constant(source)


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.size)


def _weight(value: ir.Value) -> Weight | None:
    """Reads a value as a float initializer behind a pair of constant parameters."""
    second = value.producer()
    if second is None or second.op_type != "DequantizeLinear" or second.inputs[0] is None:
        return None
    first = second.inputs[0].producer()
    if first is None or first.op_type != "QuantizeLinear":
        return None
    source, scale = first.inputs[0], first.inputs[1]
    if source is None or scale is None or not (is_constant(source) and is_constant(scale)):
        return None
    if source.dtype != ir.DataType.FLOAT or (first.attributes.get_int("block_size") or 0):
        return None
    kind = first.outputs[0].dtype
    if kind is None or not kind.is_integer():
        return None
    axis = first.attributes.get_int("axis", 1) if _size(scale) > 1 else None
    low, high = integer_range(kind)
    return Weight(source.name or "", scale.name or "", axis, low, high)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a block is trained.

    Attributes:
        iterations: Steps of Adam, whose rate falls to zero like a cosine.
        weights: The rate of weights, in quantization steps.
        biases: The rate of biases, in quantization steps of the output.
        scales: The rate of scales, relative.
        chosen: Choose which way each weight is rounded, instead of moving weights; ``weights`` then means
            nothing.
    """

    iterations: int
    weights: float = 0.003
    biases: float = 0.05
    scales: float = 0.005
    chosen: bool = False


def train(
    model: ir.Model,
    block: Block,
    trainable: Trainable,
    batches: Sequence[tuple[Values, Values]],
    schedule: Schedule,
    order: np.ndarray,
) -> dict[str, np.ndarray]:
    """Trains a block.

    Args:
        model: The quantized model.
        block: The block.
        trainable: What is trained.
        batches: Inputs as the quantized model makes them, and outputs as the float model does.
        schedule: How it is trained.
        order: The batch of every iteration, at least as many as there are iterations.

    Returns:
        The new arrays of initializers, by name; weights lie on their grids.
    """
    torch = require_torch()
    device = Segment(model, block.inputs, block.outputs, trainable.names).device
    start = {name: constant(model, name, device) for name in trainable.names}
    steps = {weight.name: step_of(model, weight, device) for weight in trainable.weights}
    weights: Learned = (
        Chosen(model.graph, trainable.weights, start, steps)
        if schedule.chosen
        else Moved(trainable.weights, start, steps, schedule.weights)
    )
    others = [*trainable.biases, *(name for group in trainable.scales for name in group)]
    segment = Segment(
        model,
        [*block.inputs, *weights.cuts],
        block.outputs,
        [*weights.parameters, *others],
        device=str(device),
    )
    power = {
        name: sum(float(outputs[name].square().mean()) for _, outputs in batches) / len(batches)
        for name in block.outputs
    }
    unit = max(np.sqrt(max(power.values(), default=1.0)) / 64, 1e-8)
    shifts = {name: torch.zeros_like(start[name]) for name in trainable.biases}
    factors = {group: torch.zeros((), device=device) for group in trainable.scales}

    def parameters() -> dict[str, Tensor]:
        current = {name: start[name] + unit * shift for name, shift in shifts.items()}
        for group, factor in factors.items():
            current.update(dict.fromkeys(group, start[group[0]] * torch.exp(factor)))
        return current

    groups: list[dict[str, Any]] = [
        {"params": list(tensors), "lr": rate, "rate": rate}
        for tensors, rate in (
            (weights.tensors, weights.rate),
            (shifts.values(), schedule.biases),
            (factors.values(), schedule.scales),
        )
        if tensors and rate
    ]
    for group in groups:
        for tensor in group["params"]:
            tensor.requires_grad_()
    optimizer = torch.optim.Adam(groups)
    for iteration in range(schedule.iterations):
        progress = iteration / schedule.iterations
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * 0.5 * (1 + np.cos(np.pi * progress))
        inputs, wanted = batches[int(order[iteration])]
        got = segment(inputs, {**weights.values(), **parameters()})
        loss = weights.penalty(progress) + sum(
            (got[name] - target).square().mean() / max(power[name], 1e-12) for name, target in wanted.items()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        final = {**weights.final(), **parameters()}
    return {name: to_numpy(tensor).astype(np.float32) for name, tensor in final.items()}


def output_units(model: ir.Model, biases: Sequence[str]) -> dict[str, float]:
    """Returns per bias the step of what it is added to, if that is quantized, else a share of the bias."""
    units = {}
    for name in biases:
        value = model.graph.initializers[name]
        step = _step_behind(value)
        if step is None:
            assert value.const_value is not None
            step = float(np.abs(value.const_value.numpy()).mean()) / 32
        units[name] = max(step, 1e-8)
    return units


def _step_behind(value: ir.Value) -> float | None:
    """The scale of the first quantizer on the way from the only reader of a value, a few nodes on."""
    uses = list(value.uses())
    for _ in range(4):
        if len(uses) != 1:
            return None
        node = uses[0].node
        if node.op_type == "QuantizeLinear" and node.inputs[1] is not None:
            tensor = node.inputs[1].const_value
            return None if tensor is None or tensor.size != 1 else float(tensor.numpy().reshape(-1)[0])
        uses = list(node.outputs[0].uses())
    return None


def constant(model: ir.Model, name: str, device: Any) -> Tensor:
    """Returns an initializer as a float32 tensor."""
    torch = require_torch()
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return torch.tensor(np.array(tensor.numpy(), np.float32), device=device)


def step_of(model: ir.Model, weight: Weight, device: Any) -> Tensor:
    """Returns the step of each element of a weight, shaped to broadcast."""
    scale = constant(model, weight.scale, device)
    if weight.axis is None or scale.dim() == 0:
        return scale.reshape(())
    tensor = model.graph.initializers[weight.name].const_value
    assert tensor is not None
    shape = [1] * len(tensor.shape)
    shape[weight.axis % len(shape)] = -1
    return scale.reshape(shape)


def set_initializers(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces initializers, by name; shapes stay."""
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(array.reshape(value.const_value.shape.numpy()), name=name)
