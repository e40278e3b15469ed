"""A quantized model in the forms that solving for its weights needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeopt.graph.quantization import (
    Parameters,
    QuantParams,
    Site,
    dequantize_array,
    quantize_array,
    strip,
    write,
)
from edgeopt.passes._products import Product, read_product

MOVES = ("Reshape", "Transpose", "Flatten", "MaxPool", "Squeeze", "Unsqueeze")
"""Operators that pass levels on as they are."""


@dataclass(slots=True)
class Forms:
    """The model in three forms.

    Attributes:
        params: Its quantization.
        plain: Without quantization.
        simulated: With activations quantized, and weights that lie on their grids.
        products: Products whose weights are quantized, by node.
        weights: Sites of weights, by name.
        changed: New numbers of constants, by name.
        rounded: What these constants held in ``simulated`` before.
    """

    params: dict[Site, list[QuantParams]]
    plain: ir.Model
    simulated: ir.Model
    products: dict[str, Product] = field(default_factory=dict)
    weights: dict[str, Site] = field(default_factory=dict)
    changed: dict[str, np.ndarray] = field(default_factory=dict)
    rounded: dict[str, ir.TensorProtocol] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, params: Parameters) -> Forms:
        """Makes the forms, and finds the products."""
        plain = model.clone()
        strip(plain)
        simulated = plain.clone()
        constants = set(simulated.graph.initializers)
        state = cls(dict(params), plain, simulated)
        for where, chain in params.items():
            if where.value in constants and len(chain) == 1 and chain[0].scale is not None:
                state.weights[where.value] = where
                value = simulated.graph.initializers[where.value]
                assert value.const_value is not None
                array = value.const_value.numpy()
                set_initializer(
                    simulated, where.value, dequantize_array(quantize_array(array, chain[0]), chain[0])
                )
        others = {where: chain for where, chain in params.items() if where.value not in state.weights}
        write(simulated, others)
        for node in simulated.graph:
            product = read_product(node)
            if product is None or product.weight not in state.weights:
                continue
            quantizer = params[state.weights[product.weight]][0]
            plain_steps = quantizer.zero_point is None and not quantizer.block
            if plain_steps and _own_scale(model, product.weight):
                state.products[product.node] = product
        return state

    def float_weight(self, name: str) -> np.ndarray:
        """A constant's numbers before anything was quantized, float64."""
        tensor = self.plain.graph.initializers[name].const_value
        assert tensor is not None
        array: np.ndarray = tensor.numpy().astype(np.float64)
        return array

    def input_step(self, product: Product) -> float:
        """The step of the product's quantized input; 0 where it comes in float."""
        node = next(node for node in self.simulated.graph if node.name == product.node)
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        while maker is not None and maker.op_type in MOVES:
            maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
        if maker is None or maker.op_type != "DequantizeLinear" or maker.inputs[1] is None:
            return 0.0
        scale = maker.inputs[1].const_value
        return 0.0 if scale is None else float(scale.numpy().reshape(-1)[0])

    def set(self, product: Product, weight: np.ndarray, steps: np.ndarray, bias: np.ndarray | None) -> None:
        """Takes over what was solved for a product."""
        where = self.weights[product.weight]
        old = self.params[where][0]
        assert old.scale is not None
        scale = steps.reshape(old.scale.shape) if old.scale.ndim else steps.reshape(-1)[0]
        self.params[where] = [QuantParams(old.dtype, np.asarray(scale, np.float32), None, old.axis)]
        arrays = {product.weight: weight}
        if bias is not None and product.bias is not None:
            arrays[product.bias] = bias
        for name, array in arrays.items():
            before = self.simulated.graph.initializers[name].const_value
            assert before is not None
            self.rounded.setdefault(name, before)
            self.changed[name] = array.astype(np.float32)
            set_initializer(self.simulated, name, self.changed[name])

    def mark(self) -> tuple[dict[str, np.ndarray], dict[Site, list[QuantParams]]]:
        """What was taken over so far, for ``back_to``."""
        return dict(self.changed), dict(self.params)

    def back_to(self, mark: tuple[dict[str, np.ndarray], dict[Site, list[QuantParams]]]) -> None:
        """Gives up what was taken over since a mark."""
        for name in self.changed:
            if name not in mark[0]:
                self.simulated.graph.initializers[name].const_value = self.rounded[name]
        self.changed, self.params = dict(mark[0]), dict(mark[1])

    def write(self, model: ir.Model) -> None:
        """Puts new constants and scales into the quantized model; no name changes."""
        for name, array in self.changed.items():
            set_initializer(model, name, array)
            if name not in self.weights:
                continue
            new = self.params[self.weights[name]][0].scale
            assert new is not None
            for use in tuple(model.graph.initializers[name].uses()):
                scale = use.node.inputs[1]
                assert scale is not None and scale.const_value is not None
                set_initializer(model, scale.name or "", new.reshape(scale.const_value.shape.numpy()))


def _own_scale(model: ir.Model, weight: str) -> bool:
    """Whether a weight is followed by one pair whose scale nothing else reads."""
    uses = list(model.graph.initializers[weight].uses())
    if len(uses) != 1 or uses[0].node.op_type != "QuantizeLinear":
        return False
    quantizer = uses[0].node
    pair = {quantizer, *(use.node for use in quantizer.outputs[0].uses())}
    scale = quantizer.inputs[1]
    return scale is not None and scale.is_initializer() and all(use.node in pair for use in scale.uses())


def set_initializer(model: ir.Model, name: str, array: np.ndarray) -> None:
    """Replaces a constant of the main graph."""
    model.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array), name=name)
