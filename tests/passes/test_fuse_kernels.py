"""Fusions into large operators, on the primitives that exporters write."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import attention_net, rows
from onnx import TensorProto, helper, numpy_helper

from benchmarks import fusions
from edgeopt import passes
from edgeopt.graph import proof
from edgeopt.graph.opset import raise_opset
from edgeopt.load import load
from edgeopt.optimization import EXACT, SCHEDULE, optimized
from edgeopt.passes import Change, Context, Facets
from edgeopt.passes.static_int8 import StaticInt8
from edgeopt.platform import load_runtime

N = helper.make_node
F = np.float32


def platform(version: str = "1.32") -> Context:
    return Context(facets=Facets(rules=load_runtime("onnxruntime").at(version)))


def model(
    nodes: list[Any], inputs: dict[str, list[Any]], numbers: dict[str, Any], opset: int = 21, *outputs: str
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or ("y",)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in numbers.items()],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    )


def fused(name: str, before: ir.Model, context: Context | None = None) -> tuple[list[str], Change]:
    after = before.clone()
    step = passes.make(name)
    assert isinstance(step, passes.Pass)
    change = step.apply(after, context or platform())
    difference = proof.compare_models(before, after)
    assert not difference.reason
    assert not change.notes
    return [node.op_type for node in after.graph if node.op_type != "Constant"], change


def test_every_block_of_the_benchmark_is_fused() -> None:
    for block in fusions.BLOCKS:
        for name, proto, feeds in block():
            if sum(array.size for array in feeds.values()) > 50_000:
                continue
            after, count = fusions.fused(proto, ("fuse-instance-norm", *SCHEDULE))
            assert (count, len(after.graph.node)) == (1, 2 if "sum" in name else 1), name
            assert not proof.compare_models(ir.from_proto(proto), ir.from_proto(after)).reason


# ---- attention


SCORES = [N("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), N("MatMul", ["q", "kt"], ["s"])]
END = [N("Softmax", ["m"], ["p"]), N("MatMul", ["p", "v"], ["y"])]
HEADS: dict[str, list[Any]] = {name: ["n", 4, 6, 8] for name in "qkv"}


@pytest.mark.parametrize(
    "mask", [(6, 6), (1, 6), (6,), (1, 1, 1, 6), ("n", 1, 1, 6), ("n", 4, 6, 6)], ids=str
)
def test_masks_of_every_shape(mask: tuple[Any, ...]) -> None:
    nodes = [*SCORES, N("Mul", ["s", "c"], ["w"]), N("Add", ["mask", "w"], ["m"]), *END]
    operators, _ = fused("fuse-attention", model(nodes, HEADS | {"mask": list(mask)}, {"c": F(0.3)}))
    assert operators in (["Attention"], ["Expand", "Attention"])


def test_a_mask_over_lengths_that_are_not_known() -> None:
    shapes: dict[str, list[Any]] = {name: ["n", 4, "s", 8] for name in "qkv"}
    nodes = [*SCORES, N("Add", ["s", "mask"], ["m"]), *END]
    operators, _ = fused("fuse-attention", model(nodes, shapes | {"mask": ["n", 1, 1, "s"]}, {}))
    assert operators == ["Shape", "Concat", "Expand", "Attention"]


def test_the_scale_may_stand_anywhere() -> None:
    nodes = [
        N("Mul", ["q", "c"], ["qs"]),
        N("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        N("Div", ["kt", "d"], ["ks"]),
        N("MatMul", ["qs", "ks"], ["m"]),
        *END,
    ]
    before = model(nodes, HEADS, {"c": F(0.5), "d": F(2)})
    after = before.clone()
    step = passes.make("fuse-attention")
    assert isinstance(step, passes.Pass)
    step.apply(after, platform())
    (node,) = [item for item in after.graph if item.op_type == "Attention"]
    assert node.attributes["scale"].as_float() == 0.25
    assert not proof.compare_models(before, after).reason


def test_heads_that_share_keys_lose_the_copies() -> None:
    shapes: dict[str, list[Any]] = {"q": [2, 4, 6, 8], "k": [2, 2, 6, 8], "v": [2, 2, 6, 8]}
    nodes = []
    for name in "kv":
        nodes += [
            N("Unsqueeze", [name, "axis"], [f"{name}u"]),
            N("Expand", [f"{name}u", "wide"], [f"{name}e"]),
            N("Reshape", [f"{name}e", "whole"], [f"{name}r"]),
        ]
    nodes += [N("Transpose", ["kr"], ["kt"], perm=[0, 1, 3, 2]), N("MatMul", ["q", "kt"], ["m"])]
    nodes += [N("Softmax", ["m"], ["p"]), N("MatMul", ["p", "vr"], ["y"])]
    numbers = {"axis": np.array([2]), "wide": np.array([2, 2, 2, 6, 8]), "whole": np.array([2, 4, 6, 8])}
    assert fused("fuse-attention", model(nodes, shapes, numbers))[0] == ["Attention"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "reason"),
    [
        ([*SCORES, N("Softmax", ["s"], ["p"]), N("MatMul", ["p", "v"], ["y"])], ("y", "p"), "another reader"),
        (
            [*SCORES, N("Mul", ["s", "c"], ["m"]), *END],
            ("y",),
            "its scores are scaled by -0.5",
        ),
    ],
)
def test_what_is_not_plain_attention_stays(nodes: list[Any], outputs: tuple[str, ...], reason: str) -> None:
    operators, change = fused("fuse-attention", model(nodes, HEADS, {"c": F(-0.5)}, 21, *outputs))
    assert "Attention" not in operators
    assert [reason in item.reason for item in change.skipped] == [True]


def test_the_model_keeps_its_opset_without_a_device_and_on_an_older_runtime() -> None:
    before = model([*SCORES, N("Identity", ["s"], ["m"]), *END], HEADS, {})
    passes_ = passes.make("simplify")
    assert isinstance(passes_, passes.Pass)
    passes_.apply(before, Context())
    operators, change = fused("fuse-attention", before, Context())
    assert "Attention" not in operators
    assert [item.reason for item in change.skipped] == ["Attention needs opset 23, the model has 21"]
    operators, change = fused("fuse-attention", before, platform("1.20"))
    assert [item.reason for item in change.skipped] == ["the runtime has no kernel attention"]
    after, _ = raise_opset(before, 23)
    assert fused("fuse-attention", after, Context())[0] == ["Attention"]


def test_attention_stays_where_the_runtime_takes_a_quantized_file_at_an_older_opset() -> None:
    """onnxruntime 1.23 runs Attention of opset 23, but no QuantizeLinear of it."""
    quantized = [
        *(N("QuantizeLinear", ["q", "d", "z"], ["qi"]), N("DequantizeLinear", ["qi", "d", "z"], ["qd"])),
        N("MatMul", ["qd", "w"], ["o"]),
    ]
    constants = {"c": F(0.5), "d": F(0.05), "z": np.uint8(128), "w": np.ones((8, 4), F)}
    attention = [*SCORES, N("Mul", ["s", "c"], ["m"]), *END]
    for version, nodes, reasons in (
        ("1.23.2", attention, []),
        ("1.23.2", [*attention, *quantized], ["it needs opset 23, and the runtime takes this file at 21"]),
        ("1.24.4", [*attention, *quantized], []),
    ):
        before = model(nodes, HEADS, constants, 21, "y", *(["o"] if nodes is not attention else []))
        operators, change = fused("fuse-attention", before, platform(version))
        assert ("Attention" in operators) == (not reasons)
        assert [item.reason for item in change.skipped] == reasons


def test_integer_products_of_attention_are_kept() -> None:
    """What quantization made of the products is no longer plain attention."""
    quantized = [
        N("QuantizeLinear", ["s", "d", "z"], ["si"]),
        N("DequantizeLinear", ["si", "d", "z"], ["m"]),
    ]
    before = model([*SCORES, *quantized, *END], HEADS, {"d": F(0.05), "z": np.uint8(128)})
    operators, change = fused("fuse-attention", before)
    assert operators.count("MatMul") == 2
    assert [item.reason for item in change.skipped] == ["its scores come from DequantizeLinear"]


# ---- rotary embedding


def rotation(split: str) -> list[Any]:
    halves = [N("Split", ["x"], ["l", "h"], axis=-1, num_outputs=2)]
    if split == "Slice":
        halves = [
            N("Slice", ["x", "zero", "half", "last"], ["l"]),
            N("Slice", ["x", "half", "end", "last"], ["h"]),
        ]
    return [
        N("Mul", ["x", "cos"], ["a"]),
        *halves,
        N("Neg", ["h"], ["n"]),
        N("Concat", ["n", "l"], ["t"], axis=3),
        N("Mul", ["t", "sin"], ["b"]),
        N("Add", ["a", "b"], ["y"]),
    ]


def tables(length: int = 6, half: int = 4) -> dict[str, Any]:
    angle = np.random.default_rng(0).standard_normal((length, half)).astype(F)
    whole = np.concatenate([angle, angle], -1)[None, None]
    cuts = {"zero": [0], "half": [half], "end": [2**62], "last": [-1]}
    return {"cos": np.cos(whole), "sin": np.sin(whole)} | {key: np.array(cut) for key, cut in cuts.items()}


@pytest.mark.parametrize("split", ["Split", "Slice"])
def test_rotary_embedding(split: str) -> None:
    for batch in (2, "n"):
        before = model(rotation(split), {"x": [batch, 3, 6, 8]}, tables())
        assert fused("fuse-rotary", before)[0] == ["RotaryEmbedding"]
    before = model(rotation(split), {"x": [2, 3, 6, 8]}, tables(), 23)
    assert fused("fuse-rotary", before, Context())[0] == ["RotaryEmbedding"]


def test_rotary_embedding_whose_tables_are_computed() -> None:
    angles = [
        N("Concat", ["f", "f"], ["ff"], axis=-1),
        N("Cos", ["ff"], ["c"]),
        N("Sin", ["ff"], ["s"]),
        N("Unsqueeze", ["c", "one"], ["cos"]),
        N("Unsqueeze", ["s", "one"], ["sin"]),
    ]
    numbers = {key: value for key, value in tables().items() if key not in ("cos", "sin")}
    inputs: dict[str, list[Any]] = {"x": ["n", 3, 6, 8], "f": ["n", 6, 4]}
    before = model([*angles, *rotation("Slice")], inputs, numbers | {"one": np.array([1])}, 23)
    assert sorted(fused("fuse-rotary", before, Context())[0]) == ["Cos", "RotaryEmbedding", "Sin"]


def test_rotary_embedding_with_unequal_halves_stays() -> None:
    numbers = tables()
    numbers["cos"] = np.random.default_rng(1).standard_normal((1, 1, 6, 8)).astype(F)
    operators, change = fused("fuse-rotary", model(rotation("Split"), {"x": [2, 3, 6, 8]}, numbers))
    assert "RotaryEmbedding" not in operators
    assert "its tables differ between batches, heads or halves" in [item.reason for item in change.skipped]


# ---- normalizations and gates


def test_rms_normalization_without_gamma_and_over_two_axes() -> None:
    nodes = [
        N("Mul", ["x", "x"], ["s"]),
        N("ReduceMean", ["s", "axes"], ["m"]),
        N("Add", ["e", "m"], ["v"]),
        N("Sqrt", ["v"], ["r"]),
        N("Reciprocal", ["r"], ["i"]),
        N("Mul", ["i", "x"], ["y"]),
    ]
    for axes in ([-1], [1, 2]):
        before = model(nodes, {"x": ["n", 5, 8]}, {"axes": np.array(axes), "e": F(1e-6)})
        assert fused("fuse-rms-norm", before)[0] == ["RMSNormalization"]
    operators, change = fused(
        "fuse-rms-norm", model(nodes, {"x": ["n", 5, 8]}, {"axes": np.array([1]), "e": F(1e-6)})
    )
    assert "RMSNormalization" not in operators
    assert [item.reason for item in change.skipped] == ["the mean is not taken over the last axes"]


def test_a_sum_before_a_normalization_is_not_left_to_a_slower_kernel() -> None:
    norm = N("LayerNormalization", ["s", "g", "b"], ["y"])
    numbers = {"g": np.ones(8, F), "b": np.ones(8, F)}
    shapes: dict[str, list[Any]] = {"x": ["n", 5, 8], "z": ["n", 5, 8]}
    before = model([N("Add", ["x", "z"], ["s"]), norm], shapes, numbers)
    assert fused("sum-before-norm", before)[0] == ["Sum", "LayerNormalization"]
    assert fused("sum-before-norm", before, platform("1.20"))[0] == ["Add", "LayerNormalization"]
    biased = model([N("Add", ["x", "b"], ["s"]), norm], {"x": ["n", 5, 8]}, numbers)
    assert fused("sum-before-norm", biased)[0] == ["Add", "LayerNormalization"]


def grouped() -> list[Any]:
    return [
        N("Reshape", ["x", "split"], ["r"]),
        N("InstanceNormalization", ["r", "one", "zero"], ["i"], epsilon=1e-4),
        N("Reshape", ["i", "join"], ["q"]),
        N("Mul", ["q", "g"], ["p"]),
        N("Add", ["p", "b"], ["y"]),
    ]


def test_group_normalization_is_made_only_where_asked_for() -> None:
    random = np.random.default_rng(0)
    numbers = {"split": np.array([2, 3, -1]), "join": np.array([2, 6, 5, 5])}
    numbers |= {"one": np.ones(3, F), "zero": np.zeros(3, F)}
    numbers |= {name: random.standard_normal((6, 1, 1)).astype(F) for name in "gb"}
    before = model(grouped(), {"x": [2, 6, 5, 5]}, numbers)
    assert fused("fuse-group-norm", before, Context())[0] == ["GroupNormalization"]
    assert [item.reason for item in fused("fuse-group-norm", before)[1].skipped] == [
        "the runtime has no kernel group-norm"
    ]


def test_silu_is_swish_from_opset_24_on() -> None:
    nodes = [N("Sigmoid", ["x"], ["s"]), N("Mul", ["s", "x"], ["y"])]
    assert fused("fuse-silu", model(nodes, {"x": ["n", 8]}, {}, 24), Context())[0] == ["Swish"]
    operators, change = fused("fuse-silu", model(nodes, {"x": ["n", 8]}, {}), Context())
    assert operators == ["Sigmoid", "Mul"]
    assert [item.reason for item in change.skipped] == ["Swish needs opset 24, the model has 21"]


# ---- what exporters write


def decoder() -> Iterator[tuple[str, ir.Model]]:
    """A block with RMS normalization, rotary embedding, grouped queries and a cache, by both exporters."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Norm(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.rand(32) + 0.5)

        def forward(self, x: Any) -> Any:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.gain

    def rotated(x: Any) -> Any:
        one, two = x.chunk(2, -1)
        return torch.cat((-two, one), -1)

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, fused_attention: bool) -> None:
            super().__init__()
            self.norm, self.fused_attention = Norm(), fused_attention
            self.q, self.k, self.v, self.o = (nn.Linear(32, 32, bias=False) for _ in range(4))
            angle = torch.outer(torch.arange(16.0), 100 ** -(torch.arange(0, 8, 2) / 8))
            self.register_buffer("cos", torch.cat((angle, angle), -1).cos())
            self.register_buffer("sin", torch.cat((angle, angle), -1).sin())

        def forward(self, x: Any, past_key: Any, past_value: Any, mask: Any) -> Any:
            y = self.norm(x)
            q, k, v = (part(y).view(1, 6, 4, 8).transpose(1, 2) for part in (self.q, self.k, self.v))
            cos, sin = self.cos[5:11], self.sin[5:11]
            q, k = q * cos + rotated(q) * sin, k * cos + rotated(k) * sin
            k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
            if self.fused_attention:
                mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            else:
                mixed = torch.softmax(q @ k.transpose(2, 3) / 8**0.5 + mask, -1) @ v
            return x + self.o(mixed.transpose(1, 2).reshape(1, 6, 32)), k, v

    torch.manual_seed(0)
    past = [torch.randn(1, 4, 5, 8) for _ in range(2)]
    inputs = (torch.randn(1, 6, 32), *past, torch.zeros(1, 1, 6, 11))
    for fused_attention in (False, True):
        block = Block(fused_attention).eval()
        program = torch.onnx.export(block, inputs, dynamo=True, opset_version=20, verbose=False)
        yield f"dynamo {fused_attention}", ir.from_proto(program.model_proto)
        buffer = io.BytesIO()
        torch.onnx.export(block, inputs, buffer, dynamo=False, opset_version=17)
        yield f"legacy {fused_attention}", load(onnx.load_from_string(buffer.getvalue()))


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_block_of_both_exporters() -> None:
    for name, original in decoder():
        after = original.clone()
        after, _ = optimized(after, steps=EXACT, verify="off")
        for step in SCHEDULE:
            made = passes.make(step)
            assert isinstance(made, passes.Pass)
            made.apply(after, platform())
        operators = [node.op_type for node in after.graph if node.op_type != "Constant"]
        assert operators.count("RMSNormalization") == 1, name
        assert operators.count("RotaryEmbedding") == 2, name
        assert operators.count("Attention") == 1, name
        assert not {"Softmax", "Concat", "Neg", "Slice", "Split"} & set(operators), name
        assert len(operators) <= 17, name
        assert not proof.compare_models(original, after).reason, name


def test_static_int8_keeps_its_integer_products_inside_attention() -> None:
    """Attention is fused after quantization, so nothing is lost to it."""
    before = attention_net()
    context = Context(
        facets=Facets(rules=load_runtime("onnxruntime").at("1.32"), calibration=rows((6, 32), 8))
    )
    StaticInt8(observer="min-max").apply(before, context)
    assert any(node.op_type == "QuantizeLinear" for node in before.graph)
    operators, _ = fused("fuse-attention", before)
    assert operators.count("MatMul") == 5
    assert "Attention" not in operators
    assert fused("fuse-attention", attention_net())[0].count("Attention") == 1


def random_attention(seed: int) -> ir.Model:
    """Attention in one of the many ways in which it can be written."""
    random = np.random.default_rng(seed)
    chance = lambda share: bool(random.random() < share)  # noqa: E731
    groups, shared = int(random.choice([1, 1, 2])), int(random.integers(1, 4))
    heads, width, length = groups * shared, int(random.choice([4, 8])), int(random.integers(1, 7))
    past = int(random.choice([0, 0, 3]))
    batch: Any = "n" if groups == 1 and chance(0.4) else 2
    inputs: dict[str, list[Any]] = {"q": [batch, heads, length, width]}
    inputs |= {name: [batch, shared, length, width] for name in "kv"}
    numbers: dict[str, Any] = {"c": F(0.4), "axis": np.array([2])}
    nodes, outputs, total = [], ["y"], length + past
    names = {"k": "k", "v": "v"}
    for name in "kv":
        if past:
            inputs[f"p{name}"] = [batch, shared, past, width]
            nodes.append(N("Concat", [f"p{name}", name], [f"a{name}"], axis=2))
            names[name] = f"a{name}"
            outputs.append(f"a{name}")
        if groups > 1:
            numbers["wide"] = np.array([2, shared, groups, total, width])
            numbers["whole"] = np.array([2, heads, total, width])
            nodes += [
                N("Unsqueeze", [names[name], "axis"], [f"u{name}"]),
                N("Expand", [f"u{name}", "wide"], [f"e{name}"]),
                N("Reshape", [f"e{name}", "whole"], [f"r{name}"]),
            ]
            names[name] = f"r{name}"
    query = "q"
    if chance(0.4):
        nodes.append(N("Mul", ["q", "c"], ["qs"]))
        query = "qs"
    nodes += [N("Transpose", [names["k"]], ["kt"], perm=[0, 1, 3, 2]), N("MatMul", [query, "kt"], ["s0"])]
    last = "s0"
    if chance(0.5):
        nodes.append(N("Div", [last, "c"], ["s1"]))
        last = "s1"
    if chance(0.6):
        shapes: list[list[Any]] = [[length, total], [1, 1, 1, total], [batch, 1, length, total], [total]]
        inputs["mask"] = shapes[int(random.integers(4))]
        nodes.append(N("Add", [last, "mask"] if chance(0.5) else ["mask", last], ["s2"]))
        last = "s2"
    nodes += [N("Softmax", [last], ["p"], axis=-1), N("MatMul", ["p", names["v"]], ["y"])]
    return model(nodes, inputs, numbers, 21, *outputs)


def test_attention_in_random_forms() -> None:
    for seed in range(30):
        operators, change = fused("fuse-attention", random_attention(seed))
        assert operators.count("Attention") == 1, (seed, change.skipped)
        assert "Softmax" not in operators, seed
