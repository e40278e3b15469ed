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


FUNCTIONS = """
    <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[4] x) => (float[4] y) { h = own.Twice<alpha = 0.5>(x)  y = own.Twice<alpha = 0.25>(h) }
    <domain: "own", opset_import: ["" : 20]>
    Twice <alpha> (a) => (b) { c = LeakyRelu<alpha: float = @alpha>(a)  b = Add(c, c) }
"""


def test_functions_are_shown_with_their_attributes() -> None:
    assert (
        to_text(ir.from_onnx_text(FUNCTIONS))
        == """\
opset ai.onnx:21 own:1
input x float[4]
%2 = own.Twice<alpha=0.5>(x)
y = own.Twice<alpha=0.25>(%2)
output y float[4]
function own.Twice<alpha>(%0)
  opset ai.onnx:20
  %1 = LeakyRelu<alpha=@alpha>(%0)
  %2 = Add(%1, %1)
  return %2
"""
    )


LOOP = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[4] x, int64 n) => (float[4] y)
    <bool go = {1}>
    {
        s = Sigmoid(x)
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[4] v) => (bool d, float[4] w)
            <float[1] k = {2.0}>
            {
                d = Identity(c)
                t = Mul(v, k)
                w = If (c) <then_branch = p () => (float[4] q) { q = Add(t, s) },
                            else_branch = r () => (float[4] u) { u = Sub(t, s) }>
            }
        >
    }
"""


def test_graphs_within_graphs_name_what_they_capture() -> None:
    assert (
        to_text(ir.from_onnx_text(LOOP))
        == """\
opset ai.onnx:21
input x float[4]
input n int64[]
constant go bool[] {1}
%4 = Sigmoid(x)
y = Loop(n, go, x)
  body:
    input i int64[]
    input c bool[]
    input v float[4]
    constant k float[1] {2}
    d = Identity(c)
    %11 = Mul(v, k)
    w = If(c)
      else_branch:
        u = Sub(%11, %4)
        output u float[4]
      then_branch:
        q = Add(%11, %4)
        output q float[4]
    output d bool[]
    output w float[4]
output y float[4]
"""
    )
