"""The regimes of 8 bits are told apart by what a file stores between its products."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.parser import parse_model

from benchmarks.integer_products import Regime, regime

HEAD = """<ir_version: 8, opset_import: ["" : 17]>
graph (float[1,4] x) => (float[1,4] y)
<float s = {0.1}, uint8 z = {128}, int8[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, int8 o = {0},
float[4,4] f = {
1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float[4] b = {1,2,3,4}, uint16 z16 = {0}> {
v = DequantizeLinear(w, s, o)
"""


def counted(body: str, folder: Path) -> Regime:
    """The counts of a graph written as text behind ``HEAD``."""
    file = folder / "model.onnx"
    onnx.save(parse_model(HEAD + body + "}"), str(file))
    return regime(file)


def test_a_sum_that_stays_float_makes_it_products(tmp_path: Path) -> None:
    found = counted(
        """q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        m = MatMul(d, v)
        h = Relu(m)
        r = Add(h, x)
        q2 = QuantizeLinear(r, s, z)
        d2 = DequantizeLinear(q2, s, z)
        y = MatMul(d2, v)
        """,
        tmp_path,
    )
    assert found == Regime(products=2, integer=2, outputs=1, stored=0)
    assert found.name == "products"


def test_a_bias_and_an_activation_may_stand_before_what_is_stored(tmp_path: Path) -> None:
    found = counted(
        """q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        m = MatMul(d, v)
        a = Add(m, b)
        g = HardSigmoid(a)
        h = Mul(a, g)
        q2 = QuantizeLinear(h, s, z)
        d2 = DequantizeLinear(q2, s, z)
        y = MatMul(d2, v)
        """,
        tmp_path,
    )
    assert found == Regime(products=2, integer=2, outputs=1, stored=1)
    assert found.name == "throughout"


def test_float_weights_and_16_bits_are_not_integer_products(tmp_path: Path) -> None:
    found = counted(
        """q = QuantizeLinear(x, s, z16)
        d = DequantizeLinear(q, s, z16)
        m = MatMul(d, v)
        q2 = QuantizeLinear(m, s, z)
        d2 = DequantizeLinear(q2, s, z)
        n = MatMul(d2, f)
        q3 = QuantizeLinear(n, s, z)
        y = DequantizeLinear(q3, s, z)
        """,
        tmp_path,
    )
    assert found == Regime(products=2, integer=0, outputs=1, stored=1)
