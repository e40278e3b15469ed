"""edgeopt's exact passes beside onnxsim and onnxslim, model by model.

    python benchmarks/beside_onnxsim.py run FOLDER ... --rows rows.jsonl [--tools T ...] [--latency]
    python benchmarks/beside_onnxsim.py show rows.jsonl

Every tool runs in a child of its own, forked when all are imported. A row says how many standard
operators are left at the input's opset (through subgraphs, functions expanded, constants not counted),
bytes of the file, CPU seconds and growth of the resident set during the simplification, whether
onnxruntime gives the same outputs on seeded inputs, and with ``--latency`` the time of a call beside the
original's, rounds interleaved, at onnxruntime's default optimization and with it off. ``edgeopt`` proves
every rewrite; ``edgeopt-off`` proves none. Rows that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import os
import resource
import signal
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from benchmarks.exactness import SIZES
from edgeopt.graph import seeds
from edgeopt.optimization import STANDARD, exact_passes, optimize

TOOLS = ("onnxsim", "onnxslim", "edgeopt-off", "edgeopt")
PEERS = ("onnxsim", "onnxslim")
TIMEOUT = 400
"""Seconds after which a tool is given up on one model."""


def simplify(tool: str, source: Path, out: Path) -> None:
    """Runs one tool in this process."""
    if tool == "onnxsim":
        import onnxsim

        simplified, _ = onnxsim.simplify(str(source))
        onnx.save(simplified, out)
    elif tool == "onnxslim":
        import onnxslim

        onnxslim.slim(str(source), str(out))
    else:
        onnx.save(optimize(source, verify="off" if tool == "edgeopt-off" else "fast"), out)


def measured(tool: str, source: Path, out: Path) -> dict[str, Any]:
    """Runs one tool in a child of its own: CPU seconds, growth of memory, or why it failed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(_in_child(tool, source, out, writer))
    os.close(writer)
    with os.fdopen(reader) as lines:
        text = lines.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return {"failed": f"it ended with status {status} (a signal, or more than {TIMEOUT} s)"}
    found: dict[str, Any] = json.loads(text)
    return found


def _in_child(tool: str, source: Path, out: Path, writer: int) -> int:
    signal.alarm(TIMEOUT)
    at_start, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        simplify(tool, source, out)
        used = resource.getrusage(resource.RUSAGE_SELF)
        row = {"cpu": time.process_time() - start, "memory": (used.ru_maxrss - at_start) * 1024}
    except BaseException as failure:  # a tool may raise anything; that is its result here
        row = {"failed": f"{type(failure).__name__}: {str(failure)[:200]}"}
    with os.fdopen(writer, "w") as pipe:
        json.dump(row, pipe)
    return 0


def operators(model: ir.Model) -> collections.Counter[str]:
    """Counts nodes by type, through subgraphs, functions expanded, constants not counted."""
    if model.functions:
        from onnx_ir.passes.common import InlinePass

        InlinePass()(model)
    counts: collections.Counter[str] = collections.Counter()
    for node in model.graph.all_nodes():
        if node.op_type != "Constant":
            counts[node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"] += 1
    return counts


def same_outputs(source: Path, out: Path) -> str:
    """Why two files do not give the same outputs on seeded inputs; "" where they do."""
    feeds = feeds_of(source)
    before, after = session(source, off=True), session(out, off=True)
    names = [value.name for value in before.get_outputs()]
    if names != [value.name for value in after.get_outputs()]:
        return "the outputs are called otherwise"
    given = {value.name for value in after.get_inputs()}
    if missing := given - set(feeds):
        return f"an input {sorted(missing)[0]!r} is new"
    expected = before.run(names, feeds)
    got = after.run(names, {name: numbers for name, numbers in feeds.items() if name in given})
    for name, one, two in zip(names, expected, got, strict=True):
        if one.shape != two.shape or one.dtype != two.dtype:
            return f"{name} is {two.dtype}{list(two.shape)}, not {one.dtype}{list(one.shape)}"
        if one.dtype.kind != "f":
            if not np.array_equal(one, two):
                return f"{name} differs"
        elif not np.allclose(one, two, rtol=0, atol=1e-4 * float(np.abs(one).max(initial=1e-6))):
            return f"{name} differs by {float(np.abs(one - two).max()):.1e}"
    return ""


def feeds_of(source: Path) -> dict[str, np.ndarray]:
    """Seeded inputs at real sizes."""
    model = ir.load(source)
    given = [value for value in model.graph.inputs if not value.is_initializer()]
    binding = {name: SIZES.get(name, 3) for name in seeds.symbols(given)}
    drawn = {value.name or "": seeds.array(value, binding, 0) for value in given}
    return {name: numbers for name, numbers in drawn.items() if numbers is not None}


def session(path: Path, off: bool) -> onnxruntime.InferenceSession:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if off:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latencies(source: Path, files: Mapping[str, Path], off: bool, rounds: int = 15) -> dict[str, float]:
    """Per tool the median over rounds of its time over the original's in the same round."""
    feeds = feeds_of(source)
    sessions = {
        "original": session(source, off),
        **{tool: session(path, off) for tool, path in files.items()},
    }
    calls = {tool: {v.name: feeds[v.name] for v in opened.get_inputs()} for tool, opened in sessions.items()}
    times: dict[str, list[float]] = {tool: [] for tool in sessions}
    for tool, opened in sessions.items():
        opened.run(None, calls[tool])
    start = time.perf_counter()
    sessions["original"].run(None, calls["original"])
    repeats = max(1, int(0.01 / max(1e-5, time.perf_counter() - start)))
    order = list(sessions)
    for number in range(rounds):
        for tool in order[number % len(order) :] + order[: number % len(order)]:
            start = time.perf_counter()
            for _ in range(repeats):
                sessions[tool].run(None, calls[tool])
            times[tool].append(time.perf_counter() - start)
    return {
        tool: statistics.median(one / base for one, base in zip(times[tool], times["original"], strict=True))
        for tool in files
    }


def rows_of(source: Path, tools: Sequence[str], latency: bool, keep: Path | None) -> Iterable[dict[str, Any]]:
    """Measures every tool on one model."""
    with tempfile.TemporaryDirectory() as folder:
        original = ir.load(source)
        counts = operators(original)
        opset = original.opset_imports.get("", 0)
        yield {"model": source.stem, "tool": "original", "nodes": counts.total(), "bytes": size(source)}
        files = {}
        rows = []
        for tool in tools:
            out = (keep or Path(folder)) / f"{source.stem}.{tool}.onnx"
            row = {"model": source.stem, "tool": tool, **measured(tool, source, out)}
            if "failed" not in row:
                simplified = ir.load(out)
                left = operators(simplified)
                row |= {"nodes": left.total(), "bytes": size(out), "operators": dict(left)}
                row["foreign"] = sum(count for name, count in left.items() if "." in name)
                row["opset"] = simplified.opset_imports.get("", 0) - opset
                try:
                    row["wrong"] = same_outputs(source, out)
                except Exception as failure:  # onnxruntime raises a class of its own per status code
                    row["wrong"] = str(failure).splitlines()[0][:200]
                if not row["wrong"]:
                    files[tool] = out
            rows.append(row)
        if latency and files:
            for key, off in (("latency", False), ("latency_off", True)):
                found = latencies(source, files, off)
                for row in rows:
                    if row["tool"] in found:
                        row[key] = found[row["tool"]]
        yield from rows


def size(path: Path) -> int:
    """Bytes of a model file and of what lies beside it under its name."""
    return sum(item.stat().st_size for item in path.parent.glob(path.name + "*"))


def show(path: Path) -> None:
    """Prints the table and what follows from it."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["model"], {})[row["tool"]] = row
    heads = ("nodes", *PEERS, "edgeopt")
    print(f"{'model':44} " + " ".join(f"{head:>8}" for head in heads) + "  CPU s (sim, slim, off, proved)")
    more, fewer, equal, wrong = [], 0, 0, collections.Counter[str]()
    for model, by_tool in sorted(rows.items()):
        ours = by_tool.get("edgeopt-off") or by_tool.get("edgeopt", {})
        cells = [nodes_of(by_tool.get(tool, {})) for tool in PEERS] + [nodes_of(ours)]
        seconds = [by_tool.get(tool, {}).get("cpu") for tool in TOOLS]
        print(
            f"{model:44} {by_tool['original']['nodes']:8} {cells[0]:>8} {cells[1]:>8} {cells[2]:>8}  "
            + " ".join("-" if item is None else f"{item:.1f}" for item in seconds)
        )
        for tool, row in by_tool.items():
            if row.get("wrong") or row.get("failed"):
                wrong[tool] += 1
                print(f"    {tool}: {row.get('wrong') or row.get('failed')}")
        best = min((row["nodes"] for row in map(by_tool.get, PEERS) if row and right(row)), default=None)
        if best is None or not right(ours):
            continue
        if ours["nodes"] > best:
            more.append(f"{model} {ours['nodes']} > {best}")
        fewer += ours["nodes"] < best
        equal += ours["nodes"] == best
    print(
        f"fewer than the better peer on {fewer}, as many on {equal}, more on {len(more)}: {'; '.join(more)}"
    )
    print("failed or wrong:", dict(wrong))
    for key in ("cpu", "memory", "bytes", "latency", "latency_off"):
        both = [
            {tool: row[key] for tool, row in by_tool.items() if right(row) and row.get(key) is not None}
            for by_tool in rows.values()
        ]
        for tool in ("edgeopt-off", "edgeopt"):
            ratios = [
                cells[tool] / min(cells[peer] for peer in PEERS if peer in cells)
                for cells in both
                if tool in cells and any(peer in cells for peer in PEERS)
            ]
            if ratios:
                middle, worst = statistics.median(ratios), max(ratios)
                print(f"{key}: {tool} over the better peer: median {middle:.3f}, worst {worst:.2f}")


def right(row: Mapping[str, Any]) -> bool:
    """Whether a tool gave a correct model of standard operators."""
    return "nodes" in row and not row.get("wrong") and not row.get("foreign")


def nodes_of(row: Mapping[str, Any]) -> str:
    """A cell of the table."""
    return ("" if right(row) else "!") + str(row.get("nodes", "-"))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("arguments", nargs="+")
    parser.add_argument("--rows", type=Path, default=Path("rows.jsonl"))
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--keep", type=Path, help="keep what the tools write in this folder")
    arguments = parser.parse_args()
    if arguments.what == "show":
        show(Path(arguments.arguments[0]))
    else:
        for tool in PEERS:
            if tool in arguments.tools:
                importlib.import_module(tool)
        exact_passes(STANDARD)  # imports them
        done = set()
        if arguments.rows.exists():
            lines = map(json.loads, arguments.rows.read_text().splitlines())
            done = {(row["model"], row["tool"]) for row in lines}
        sources = [path for folder in arguments.arguments for path in sorted(Path(folder).rglob("*.onnx"))]
        for source in sources:
            tools = [tool for tool in arguments.tools if (source.stem, tool) not in done]
            for row in rows_of(source, tools, arguments.latency, arguments.keep) if tools else ():
                with arguments.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
