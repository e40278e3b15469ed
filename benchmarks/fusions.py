"""What the fusions into large operators gain on the host, beside the primitives that exporters write.

    python -m benchmarks.fusions blocks [--rounds N]     each fusion on the primitives alone
    python -m benchmarks.fusions models MODEL.onnx...    whole models without and with all of them
    python -m benchmarks.fusions others                  operators that were tried and dropped

Every pair runs in turn in onnxruntime at its default optimization level, which fuses by itself what it
knows, with one thread; medians of calls in microseconds, and the ratio (below 1: the fusion is faster). The
fused side is what the passes make with the rules of the newest onnxruntime, proofs on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgeopt import passes
from edgeopt.graph import seeds
from edgeopt.graph.opset import raise_opset
from edgeopt.load import load
from edgeopt.optimization import EXACT, SCHEDULE, optimized
from edgeopt.passes import Context, Facets, Pass
from edgeopt.platform import load_runtime

N = helper.make_node
F = np.float32
Feeds = Mapping[str, np.ndarray]


def model(
    nodes: Sequence[Any], given: Feeds, outputs: Sequence[str], constants: Feeds, opset: int = 21
) -> onnx.ModelProto:
    """A model of float inputs with the shapes of the arrays given."""
    graph = helper.make_graph(
        list(nodes),
        "block",
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, array.shape) for key, array in given.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=10))


def fused(proto: onnx.ModelProto, names: Sequence[str] = SCHEDULE) -> tuple[onnx.ModelProto, int]:
    """The model after fusions with onnxruntime's rules, and how many were made."""
    rewritten = ir.from_proto(proto)
    facets, count = Facets(rules=load_runtime("onnxruntime").ranges[0]), 0
    for name in names:
        step = passes.make(name)
        assert isinstance(step, Pass)
        count += len(step.apply(rewritten, Context(facets=facets)).rewrites)
    return ir.to_proto(rewritten), count


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session as a user would open it, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def medians(one: onnx.ModelProto, two: onnx.ModelProto, feeds: Feeds, rounds: int) -> tuple[float, float]:
    """Median seconds of a call of each, called in turn."""
    sessions = [session(one), session(two)]
    known = [{item.name: feeds[item.name] for item in found.get_inputs()} for found in sessions]
    start = time.perf_counter()
    for found, given in zip(sessions, known, strict=True):
        found.run(None, given)
    repeat = max(1, int(0.004 / (time.perf_counter() - start)))
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds):
        for place in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(repeat):
                sessions[place].run(None, known[place])
            seconds[place].append((time.perf_counter() - start) / repeat)
    return float(np.median(seconds[0])), float(np.median(seconds[1]))


def show(name: str, one: onnx.ModelProto, two: onnx.ModelProto, feeds: Feeds, rounds: int) -> None:
    """Prints a line."""
    before, after = medians(one, two, feeds, rounds)
    count = f"{len(one.graph.node)} -> {len(two.graph.node)} nodes"
    print(
        f"{name:44} {count:>20} {before * 1e6:9.1f} {after * 1e6:9.1f} {after / before:6.2f}",
        flush=True,
    )


Block = tuple[str, onnx.ModelProto, Feeds]

random = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    """Normally distributed numbers."""
    return random.standard_normal(shape).astype(F)


def rms_norms() -> Iterator[Block]:
    """As the legacy exporter and as the current one write it."""
    for rows, width in [(16, 128), (128, 768), (1, 512)]:
        x = numbers(1, rows, width)
        constants = {"two": F(2), "axes": np.array([-1]), "e": F(1e-5), "one": F(1), "g": numbers(width)}
        power = [
            N("Pow", ["x", "two"], ["s"]),
            N("ReduceMean", ["s", "axes"], ["m"]),
            N("Add", ["m", "e"], ["v"]),
            N("Sqrt", ["v"], ["r"]),
        ]
        ends = {
            "1 / root": [N("Div", ["one", "r"], ["i"]), N("Mul", ["x", "i"], ["d"])],
            "x / root": [N("Div", ["x", "r"], ["d"])],
        }
        for form, nodes in ends.items():
            whole = [*power, *nodes, N("Mul", ["d", "g"], ["y"])]
            yield f"RMS norm {rows}x{width}, {form}", model(whole, {"x": x}, ["y"], constants), {"x": x}


def instance_norms() -> Iterator[Block]:
    """The primitives over the space of an image."""
    for channels, size in [(32, 16), (64, 32)]:
        x = numbers(1, channels, size, size)
        constants = {"axes": np.array([2, 3]), "e": F(1e-5)}
        constants |= {"g": numbers(1, channels, 1, 1), "b": numbers(1, channels, 1, 1)}
        nodes = [
            N("ReduceMean", ["x", "axes"], ["m"]),
            N("Sub", ["x", "m"], ["d"]),
            N("Mul", ["d", "d"], ["s"]),
            N("ReduceMean", ["s", "axes"], ["w"]),
            N("Add", ["w", "e"], ["v"]),
            N("Sqrt", ["v"], ["r"]),
            N("Div", ["d", "r"], ["q"]),
            N("Mul", ["q", "g"], ["p"]),
            N("Add", ["p", "b"], ["y"]),
        ]
        yield f"instance norm {channels}x{size}x{size}", model(nodes, {"x": x}, ["y"], constants), {"x": x}


def residuals() -> Iterator[Block]:
    """A residual sum before a layer normalization, which onnxruntime joins by itself."""
    for rows, width in [(1, 512), (16, 128), (64, 128), (128, 768)]:
        given = {"x": numbers(1, rows, width), "z": numbers(1, rows, width)}
        nodes = [N("Add", ["x", "z"], ["s"]), N("LayerNormalization", ["s", "g", "b"], ["y"])]
        constants = {"g": numbers(width), "b": numbers(width)}
        yield f"sum before layer norm {rows}x{width}", model(nodes, given, ["y"], constants), given


def rotary() -> Iterator[Block]:
    """The two halves of the last axis."""
    for length, heads, width in [(16, 4, 32), (128, 8, 64), (1, 8, 64)]:
        x, angle = numbers(1, heads, length, width), numbers(length, width // 2)
        whole = np.concatenate([angle, angle], -1)[None, None]
        constants = {"c": np.cos(whole), "s": np.sin(whole), "zero": np.array([0]), "last": np.array([-1])}
        constants |= {"half": np.array([width // 2]), "end": np.array([2**62])}
        nodes = [
            N("Mul", ["x", "c"], ["a"]),
            N("Slice", ["x", "zero", "half", "last"], ["l"]),
            N("Slice", ["x", "half", "end", "last"], ["h"]),
            N("Neg", ["h"], ["n"]),
            N("Concat", ["n", "l"], ["t"], axis=-1),
            N("Mul", ["t", "s"], ["b"]),
            N("Add", ["a", "b"], ["y"]),
        ]
        yield f"rotary {heads} heads {length}x{width}", model(nodes, {"x": x}, ["y"], constants), {"x": x}


def attentions() -> Iterator[Block]:
    """Heads split from rows; without and with a causal mask, and with keys and values of earlier calls."""
    sizes = [
        (16, 4, 32, 0),
        (64, 4, 32, 0),
        (128, 12, 64, 0),
        (256, 8, 64, 0),
        (1, 8, 64, 63),
        (1, 8, 64, 255),
    ]
    for length, heads, width, past in sizes:
        for masked in (False, True):
            given = {name: numbers(1, length, heads * width) for name in "qkv"}
            constants: dict[str, Any] = {"split": np.array([1, length, heads, width])}
            constants |= {"join": np.array([1, length, heads * width]), "scale": F(width**0.5)}
            nodes, key, value = [], "kt", "vt"
            for name in "qkv":
                nodes.append(N("Reshape", [name, "split"], [f"{name}r"]))
                order = [0, 2, 3, 1] if name == "k" and not past else [0, 2, 1, 3]
                nodes.append(N("Transpose", [f"{name}r"], [f"{name}t"], perm=order))
            if past:
                given |= {name: numbers(1, heads, past, width) for name in ("pk", "pv")}
                nodes += [N("Concat", [f"p{name}", f"{name}t"], [f"a{name}"], axis=2) for name in "kv"]
                nodes.append(N("Transpose", ["ak"], ["akt"], perm=[0, 1, 3, 2]))
                key, value = "akt", "av"
            nodes += [N("MatMul", ["qt", key], ["s"]), N("Div", ["s", "scale"], ["w"])]
            if masked:
                mask = np.triu(np.full((length, length + past), -1e9, F), 1 + past)
                constants["mask"] = mask
                nodes.append(N("Add", ["w", "mask"], ["m"]))
            nodes += [
                N("Softmax", ["m" if masked else "w"], ["p"], axis=-1),
                N("MatMul", ["p", value], ["o"]),
                N("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]),
                N("Reshape", ["t", "join"], ["y"]),
            ]
            outputs = ["y", "ak", "av"] if past else ["y"]
            name = f"attention {heads} heads {length}+{past} x{width}{', masked' if masked else ''}"
            yield name, model(nodes, given, outputs, constants), given


BLOCKS: tuple[Callable[[], Iterator[Block]], ...] = (rms_norms, instance_norms, residuals, rotary, attentions)


def blocks(rounds: int) -> None:
    """Each fusion on the primitives alone."""
    for block in BLOCKS:
        for name, proto, feeds in block():
            after, count = fused(proto, ("fuse-instance-norm", *SCHEDULE))
            assert count, f"nothing was fused in {name}"
            show(name, proto, after, feeds, rounds)


def models(paths: Sequence[str], rounds: int) -> None:
    """Whole float models, both sides after the other exact passes and at opset 21 before."""
    for path in paths:
        raised, _ = raise_opset(load(path))
        before, _ = optimized(raised, steps=EXACT)
        proto = ir.to_proto(before)
        after, count = fused(proto)
        given = [value for value in before.graph.inputs if not value.is_initializer()]
        binding = {name: 1 if place == 0 else 64 for place, name in enumerate(seeds.symbols(given))}
        drawn = {value.name or "": seeds.array(value, binding, 0) for value in given}
        feeds = {name: array for name, array in drawn.items() if array is not None}
        show(f"{Path(path).stem}, {count} fused", proto, after, feeds, rounds)


def others(rounds: int) -> None:
    """Operators that onnxruntime has, or expands, and that are no faster than the primitives."""
    for rows, width in [(16, 128), (128, 768)]:
        x, z, gain, shift = numbers(1, rows, width), numbers(1, rows, width), numbers(width), numbers(width)
        given, constants = {"x": x, "z": z}, {"g": gain, "b": shift}
        size = f"{rows}x{width}"
        add = N("Add", ["x", "z"], ["s"])
        norm = [add, N("LayerNormalization", ["s", "g", "b"], ["y"])]
        skip = N("SkipLayerNormalization", ["x", "z", "g", "b"], ["y", "", "", "s"], domain="com.microsoft")
        one = model(norm, given, ["y", "s"], constants)
        show(
            f"SkipLayerNormalization {size}", one, model([skip], given, ["y", "s"], constants), given, rounds
        )
        rms = [add, N("RMSNormalization", ["s", "g"], ["y"], epsilon=1e-5)]
        skip = N(
            "SkipSimplifiedLayerNormalization", ["x", "z", "g"], ["y", "", "", "s"], domain="com.microsoft"
        )
        one, two = model(rms, given, ["y", "s"], constants, 23), model([skip], given, ["y", "s"], constants)
        show(f"SkipSimplifiedLayerNormalization {size}", one, two, given, rounds)
        gate = [N("Sigmoid", ["x"], ["s"]), N("Mul", ["x", "s"], ["y"])]
        alone = {"x": x}
        quick = model([N("QuickGelu", ["x"], ["y"], domain="com.microsoft", alpha=1.0)], alone, ["y"], {})
        show(f"QuickGelu {size}", model(gate, alone, ["y"], {}), quick, alone, rounds)
        swish = model([N("Swish", ["x"], ["y"])], alone, ["y"], {}, 24)
        show(f"Swish {size}", model(gate, alone, ["y"], {}), swish, alone, rounds)
        mish = [N("Softplus", ["x"], ["p"]), N("Tanh", ["p"], ["t"]), N("Mul", ["x", "t"], ["y"])]
        two = model([N("Mish", ["x"], ["y"])], alone, ["y"], {})
        show(f"Mish {size}", model(mish, alone, ["y"], {}), two, alone, rounds)
    for channels, size, groups in [(32, 16, 8), (64, 32, 32)]:
        x = numbers(1, channels, size, size)
        constants = {"split": np.array([0, groups, -1]), "join": np.array(x.shape)}
        constants |= {"one": np.ones(groups, F), "zero": np.zeros(groups, F)}
        constants |= {"g": numbers(1, channels, 1, 1), "b": numbers(1, channels, 1, 1)}
        nodes = [
            N("Reshape", ["x", "split"], ["r"]),
            N("InstanceNormalization", ["r", "one", "zero"], ["i"], epsilon=1e-5),
            N("Reshape", ["i", "join"], ["q"]),
            N("Mul", ["q", "g"], ["p"]),
            N("Add", ["p", "b"], ["y"]),
        ]
        one = model(nodes, {"x": x}, ["y"], constants)
        two, _ = fused_without_rules(one, "fuse-group-norm")
        show(f"GroupNormalization {channels}x{size}x{size}", one, two, {"x": x}, rounds)
    for masked in (False, True):
        for name, proto, feeds in attentions():
            if masked == ("masked" in name) and "+0" in name:
                show(f"MultiHeadAttention, {name}", proto, _multi_head(proto), feeds, rounds)


def fused_without_rules(proto: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, int]:
    """The model after one fusion that no platform's rules restrain."""
    rewritten = ir.from_proto(proto)
    step = passes.make(name)
    assert isinstance(step, Pass)
    count = len(step.apply(rewritten, Context()).rewrites)
    return ir.to_proto(rewritten), count


def _multi_head(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same attention as onnxruntime's MultiHeadAttention."""
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    mask = [item for item in other.graph.initializer if item.name == "mask"]
    del other.graph.node[:], other.graph.initializer[:], other.graph.value_info[:]
    if mask:
        array = numpy_helper.to_array(mask[0])[None, None]
        other.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), "mask"))
    inputs = ["q", "k", "v", "", "", "mask"] if mask else ["q", "k", "v"]
    heads = int(constants["split"][2])
    other.graph.node.append(N("MultiHeadAttention", inputs, ["y"], domain="com.microsoft", num_heads=heads))
    return other


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["blocks", "models", "others"])
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    print(f"{'':44} {'':>20} {'before us':>9} {'after us':>9} {'ratio':>6}")
    if arguments.what == "blocks":
        blocks(arguments.rounds)
    elif arguments.what == "models":
        models(arguments.paths, arguments.rounds)
    else:
        others(arguments.rounds)


if __name__ == "__main__":
    main()
