from __future__ import annotations

import onnx_ir as ir

from edgeopt.graph.print import to_text

TEXT = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[batch,4] x, bool c) => (float[batch,4] y)
    <float[4] a = {1.0, 2.0, 3.0, 4.5}>
    {
        m = Mul(x, a)
        n = LeakyRelu<alpha=0.25>(m)
        y = If (c) <
            then_branch = t () => (float[batch,4] p) { p = Relu(n) },
            else_branch = e () => (float[batch,4] q) { q = Identity(n) }
        >
    }
"""


def test_the_text_shows_the_whole_graph() -> None:
    assert (
        to_text(ir.from_onnx_text(TEXT))
        == """\
opset ai.onnx:21
input x float[batch, 4]
input c bool[]
constant a float[4] {1, 2, 3, 4.5}
%4 = Mul(x, a)
%5 = LeakyRelu<alpha=0.25>(%4)
y = If(c)
  else_branch:
    q = Identity(%5)
    output q float[batch, 4]
  then_branch:
    p = Relu(%5)
    output p float[batch, 4]
output y float[batch, 4]
"""
    )


def test_inner_names_do_not_matter_and_everything_else_does() -> None:
    text = to_text(ir.from_onnx_text(TEXT))
    renamed = TEXT.replace("m = Mul", "other = Mul").replace("(m)", "(other)")
    assert to_text(ir.from_onnx_text(renamed)) == text
    for old, new in (("4.5", "4.25"), ("alpha=0.25", "alpha=0.5"), ("Relu(n)", "Tanh(n)"), ("21", "20")):
        assert to_text(ir.from_onnx_text(TEXT.replace(old, new))) != text


def test_large_constants_show_a_checksum_of_their_values() -> None:
    def model(last: str) -> ir.Model:
        numbers = ", ".join([*(["1.0"] * 8), last])
        return ir.from_onnx_text(f"""
            <ir_version: 10, opset_import: ["" : 21]>
            g (float[9] x) => (float[9] y) <float[9] w = {{{numbers}}}> {{ y = Add(x, w) }}
        """)

    assert "constant w float[9] crc " in to_text(model("1.0"))
    assert to_text(model("1.0")) != to_text(model("2.0"))
