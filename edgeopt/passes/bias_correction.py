"""Take back the mean error that quantization makes in each channel of each layer.

Rounding weights and cutting ranges shifts the mean of a layer's outputs. Layer after layer, the mean of
each channel over calibration samples is compared with the float model's, and the difference is added to
the bias, so later layers are corrected for what is left before them (empirical bias correction: Nagel et
al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, appendix D). The
result is kept where it makes the model more faithful on the validation samples. The float model is the
model itself without its quantization; where that is not the original's any more, as behind ``reconstruct``,
nothing is corrected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import fidelity, units
from edgeopt.errors import UserError
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.placement import is_constant
from edgeopt.graph.quantization import read, strip, with_rounded_constants
from edgeopt.passes._calibration import WORTH, Calls
from edgeopt.passes._judge import estranged
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage


@dataclass(frozen=True, slots=True)
class Layer:
    """A product with a constant bias of its own.

    Attributes:
        node: The node whose output is compared: the product, or the Add that holds its bias.
        bias: The bias, by name.
        axis: The axis of channels in the output.
    """

    node: str
    bias: str
    axis: int


@dataclass(frozen=True)
class BiasCorrection(Pass):
    """Add to each bias what quantization took from the mean of its channel.

    Attributes:
        samples: At most this many calibration samples are used, fewer of a large model.
    """

    name: ClassVar[str] = "bias-correction"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    samples: int = 64

    @property
    def reads(self) -> frozenset[Facet]:
        """Calibration and validation samples, and the float original."""
        return frozenset({"calibration", "validation", "teacher"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Corrects all biases, in order.

        Raises:
            UserError: There are no calibration samples.
        """
        data = context.calibration
        if data is None or len(data) == 0:
            raise UserError(
                "bias-correction needs calibration data", hint="--data PATH, or data in the recipe"
            )
        if not read(model):
            return Change(summary="no quantized values, so nothing to correct")
        name_nodes(model)
        plain = model.clone()
        strip(plain)
        layers, skipped = find_layers(model)
        nodes = {node.name: node for node in plain.graph}
        chosen = [layer for layer in layers if layer.node in nodes and context.allow(self.name, layer.node)]
        if not chosen:
            return Change(summary="no layer has a bias to correct", skipped=skipped)
        calls = Calls.fitting(plain, data, self.samples).for_trials(plain)
        original = plain if context.teacher is None else context.teacher
        judging = None if not context.validation else Calls(context.validation, calls.batch, calls.limit)
        if judging is not None and (reason := estranged(_worth(original, plain, judging))):
            return Change(summary=f"left as it is: {reason}", skipped=skipped)
        before = None if judging is None else _worth(original, model, judging)
        tapped = {layer: nodes[layer.node].outputs[0].name or "" for layer in chosen}
        wanted = _means(plain, {tapped[layer]: layer.axis for layer in chosen}, calls)
        old = {layer.bias: model.graph.initializers[layer.bias].const_value for layer in chosen}
        for layer in context.progress(chosen, "bias correction", len(chosen)):
            simulated = with_rounded_constants(model)
            (node,) = (node for node in simulated.graph if node.name == layer.node)
            name = node.outputs[0].name or ""
            got = _means(simulated, {name: layer.axis}, calls)[name]
            value = model.graph.initializers[layer.bias]
            assert value.const_value is not None
            array = value.const_value.numpy()
            error = (wanted[tapped[layer]] - got).astype(array.dtype)
            value.const_value = ir.tensor(array + error.reshape(array.shape), name=layer.bias)
        details: dict[str, object] = {"layers": len(chosen)}
        if judging is not None and before is not None:
            after = _worth(original, model, judging)
            details |= {"fidelity": round(before, 2), "fidelity_after": round(after, 2)}
            if after < before + WORTH:
                for bias, tensor in old.items():
                    model.graph.initializers[bias].const_value = tensor
                reason = f"not kept: {before:.1f} dB became {after:.1f} on the validation samples"
                skipped += [Skipped(self.name, layer.node, reason) for layer in chosen]
                return Change(summary=reason, skipped=skipped, details=details)
            summary = (
                f"{units.number(len(chosen), 'bias', 'biases')} corrected, {before:.1f} -> {after:.1f} dB"
            )
        else:
            summary = f"{units.number(len(chosen), 'bias', 'biases')} corrected"
        originals = {node.name: original_names(node) or (node.name or "",) for node in model.graph}
        rewrites = [Rewrite(self.name, originals[layer.node][0], originals[layer.node]) for layer in chosen]
        return Change(summary=summary, rewrites=rewrites, skipped=skipped, details=details)


def find_layers(model: ir.Model) -> tuple[list[Layer], list[Skipped]]:
    """Finds every product with a constant bias that nothing else reads, in order."""
    layers, skipped = [], []
    for node in model.graph:
        axis = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "Add": -1}.get(node.op_type)
        if axis is None or node.domain not in ("", "ai.onnx"):
            continue
        bias = _bias_of_sum(node) if node.op_type == "Add" else (*node.inputs, None, None)[2]
        if node.op_type == "Add" and bias is None:
            continue
        name = node.name or ""
        if bias is None or not is_constant(bias) or bias.dtype != ir.DataType.FLOAT:
            skipped.append(Skipped("bias-correction", name, "it has no constant bias"))
        elif len(bias.uses()) > 1:
            skipped.append(Skipped("bias-correction", name, f"its bias {bias.name!r} is read elsewhere too"))
        elif bias.shape is None or len(bias.shape) != 1 or bias.shape[0] == 1:
            skipped.append(Skipped("bias-correction", name, "its bias is not one number per channel"))
        else:
            layers.append(Layer(name, bias.name or "", axis))
    return layers, skipped


def _bias_of_sum(node: ir.Node) -> ir.Value | None:
    """The constant that an Add puts on a matrix product, or ``None``."""
    one, two = node.inputs[:2]
    for product, bias in ((one, two), (two, one)):
        maker = None if product is None else product.producer()
        if maker is not None and maker.op_type == "MatMul" and bias is not None and is_constant(bias):
            return bias
    return None


def _means(
    model: ir.Model, axes: dict[str, int], calls: Iterable[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns the mean of each channel of some values over all calls, float64 of shape [channels]."""
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    with Executor(model, list(axes)) as executor:
        for feeds in calls:
            for name, array in executor.run(feeds, list(axes)).items():
                rows = np.moveaxis(array, axes[name], -1).reshape(-1, array.shape[axes[name]])
                sums[name] = sums.get(name, 0.0) + rows.sum(0, dtype=np.float64)
                counts[name] = counts.get(name, 0) + len(rows)
    return {name: total / counts[name] for name, total in sums.items()}


def _worth(original: ir.Model, model: ir.Model, calls: Iterable[dict[str, np.ndarray]]) -> float:
    simulated = with_rounded_constants(model)
    with Executor(original, optimize=True) as reference, Executor(simulated) as executor:
        return fidelity.compare(reference.run, executor.run, calls).balanced
