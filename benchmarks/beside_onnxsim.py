"""edgeopt's exact passes beside onnxsim and onnxslim, model by model.

    python -m benchmarks.beside_onnxsim run FOLDER ... --rows rows.jsonl [--tools T ...] [--latency]
    python -m benchmarks.beside_onnxsim show rows.jsonl

Every tool runs in a process of its own that has imported nothing else (``simplifier.py``), and every model
in a fork of it. A row says how many standard operators are left at the input's opset (through subgraphs,
functions expanded, constants not counted), bytes of the file, CPU seconds without imports and with them
(what a user waits for who calls the tool once), the peak of the resident set, whether onnxruntime gives the
same outputs on seeded inputs, and with ``--latency`` the time of a call beside the original's, rounds
interleaved in one process, at onnxruntime's default optimization and with it off; a second session of the
original tells the noise. ``edgeopt`` proves every rewrite; ``edgeopt-off`` proves none. Rows that are there
already are not measured again.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from benchmarks.exactness import SIZES
from edgeopt.graph import seeds

TOOLS = ("onnxsim", "onnxslim", "edgeopt-off", "edgeopt")
PEERS = ("onnxsim", "onnxslim")

ROUNDS = 25
"""Rounds of a latency measurement; in each every model runs for at least a hundredth of a second."""

TWIN = "twin"
"""A second session of the original: its time over the first one's is the noise."""


class Simplifier:
    """A tool in a process of its own."""

    def __init__(self, tool: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("simplifier.py"), tool],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.imports: float = self._answer()["imports"]

    def run(self, source: Path, out: Path) -> dict[str, Any]:
        """Simplifies a model: CPU seconds, memory, or why it failed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(source.resolve()), str(out.resolve())]) + "\n")
        self._process.stdin.flush()
        row = self._answer()
        return {**row, "process": row["cpu"] + self.imports} if "cpu" in row else row

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended: is the tool installed?")
        found: dict[str, Any] = json.loads(line)
        return found


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


def latencies(source: Path, files: Mapping[str, Path], off: bool) -> dict[str, float]:
    """Per tool, and for a twin of the original, the median over rounds of its time over the original's."""
    feeds = feeds_of(source)
    sessions = {
        "original": session(source, off),
        TWIN: session(source, off),
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
    for number in range(ROUNDS):
        for tool in order[number % len(order) :] + order[: number % len(order)]:
            start = time.perf_counter()
            for _ in range(repeats):
                sessions[tool].run(None, calls[tool])
            times[tool].append(time.perf_counter() - start)
    return {
        tool: statistics.median(one / base for one, base in zip(times[tool], times["original"], strict=True))
        for tool in order[1:]
    }


def rows_of(
    source: Path, tools: Mapping[str, Simplifier], latency: bool, keep: Path | None
) -> Iterable[dict[str, Any]]:
    """Measures every tool on one model."""
    with tempfile.TemporaryDirectory() as folder:
        original = ir.load(source)
        opset = original.opset_imports.get("", 0)
        first: dict[str, Any] = {"model": source.stem, "tool": "original"}
        first |= {"nodes": operators(original).total(), "bytes": size(source)}
        files = {}
        rows = [first]
        for tool, simplifier in tools.items():
            out = (keep or Path(folder)) / f"{source.stem}.{tool}.onnx"
            row = {"model": source.stem, "tool": tool, **simplifier.run(source, out)}
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
                first[f"{key}_twin"] = found.pop(TWIN)
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
        known = rows.setdefault(row["model"], {})
        known[row["tool"]] = {**known.get(row["tool"], {}), **row}
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
    show_latencies(rows.values())
    for key in ("cpu", "process", "memory", "bytes", "latency", "latency_off"):
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
                over = f"{key}: {tool} over the better peer"
                print(f"{over}: median {middle:.4f}, worst {worst:.2f}, {len(ratios)} models")


def show_latencies(models: Iterable[dict[str, dict[str, Any]]]) -> None:
    """Prints every tool's latency over the original's, and the noise of such a ratio."""
    models = list(models)
    for key, setting in (("latency", "optimizing"), ("latency_off", "as it is")):
        twins = [
            abs(by_tool["original"][f"{key}_twin"] - 1)
            for by_tool in models
            if f"{key}_twin" in by_tool["original"]
        ]
        if not twins:
            continue
        middle = ", ".join(
            f"{tool} {statistics.median(found):.3f}"
            for tool in TOOLS
            if (found := [by_tool[tool][key] for by_tool in models if key in by_tool.get(tool, {})])
        )
        print(f"latency over the original's, onnxruntime {setting}, {len(twins)} models, medians: {middle};")
        print(f"    noise of a ratio: median {statistics.median(twins):.3f}, worst {max(twins):.3f}")


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
        done = set()
        if arguments.rows.exists():
            lines = map(json.loads, arguments.rows.read_text().splitlines())
            done = {(row["model"], row["tool"]) for row in lines}
        sources = [path for folder in arguments.arguments for path in found_in(Path(folder))]
        simplifiers = {tool: Simplifier(tool) for tool in arguments.tools}
        for tool, simplifier in simplifiers.items():
            print(f"{tool}: {simplifier.imports:.2f} CPU seconds to import")
        for source in sources:
            todo = {tool: item for tool, item in simplifiers.items() if (source.stem, tool) not in done}
            for row in rows_of(source, todo, arguments.latency, arguments.keep) if todo else ():
                with arguments.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        for simplifier in simplifiers.values():
            simplifier.close()


def found_in(place: Path) -> list[Path]:
    """A model, or the models of a folder."""
    return [place] if place.is_file() else sorted(place.rglob("*.onnx"))


if __name__ == "__main__":
    main()
