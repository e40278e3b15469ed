"""TFLite files of torchvision's convolutional classifiers: edgeopt beside onnx2tf and litert-torch.

    python -m benchmarks.beside_tflite_converters FOLDER [--find-links WHEELS] [--only MODEL...] [--rounds 5]

Needs torch, torchvision 0.28, onnxruntime and ai-edge-litert in its own environment, ``uv`` and the Pythons
3.11 and 3.12. The peers get environments of their own under FOLDER/environments, made on the first run:
onnx2tf 2.6.9 (its direct flatbuffer writer), onnx2tf 1.29.0 (through TensorFlow) and litert-torch 0.10.0;
``--find-links`` is where a torch for CPUs lies. Networks have random weights from a fixed seed, and batch
normalizations that took their statistics from eight pictures, so that outputs really depend on inputs.

Everything measured is a line of FOLDER/rows.jsonl, and what is there is not measured again.

- CPU seconds and peak memory over the imports: a process imports all that a conversion imports, then
  converts; the second part counts. Medians over rounds, tools by turns. litert-torch and TensorFlow, which
  take minutes, once: a process that converts, less one that only imports the same.
- Operators and transposes are those of all subgraphs of the file.
- Error: against onnxruntime on four pictures, relative to the largest output.
- Latency: CPU time of LiteRT with its default delegate on one thread, which is its latency on an idle
  machine. ``edgeopt.benchmark`` judges it as it does for users: 20 rounds of all files of a model in an order
  drawn anew, ours twice; the median of the ratios to ours with a 95 % interval, and "faster" or "slower"
  only beyond the noise floor. Every turn is a process of its own, since where a process happens to lie in
  memory moves its times by 2 %.
- Instructions (``--count``, needs valgrind 3.19 or later): those that LiteRT executes in one call, as
  callgrind counts them; they have no noise at all. Valgrind knows AVX2 and not AVX-512, so the kernels are
  those of a processor without it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt import benchmark

HERE = Path(__file__).parent / "tflite_converters"
MODELS = [
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "resnet18",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "regnet_x_400mf",
]
ENVIRONMENTS: dict[str, tuple[str, list[list[str]]]] = {
    "onnx2tf": ("3.12", [["onnx2tf==2.6.9"]]),
    "litert-torch": (
        "3.11",
        [["litert-torch==0.10.0", "torch==2.13.0"], ["--no-deps", "torchvision==0.28.*"]],
    ),
    "onnx2tf with TensorFlow": ("3.11", [["onnx2tf==1.29.0"]]),
}
PEERS = list(ENVIRONMENTS)
OWN = "edgeopt"
SLOW = ("litert-torch", "onnx2tf with TensorFlow")
"""Their conversions are measured once."""
VERDICTS = {"faster": "faster", "slower": "slower", "inconclusive": "no difference"}


def main() -> None:
    """Measures what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--find-links", default="")
    parser.add_argument(
        "--python", nargs="*", default=[], metavar="VERSION=PATH", help="which 3.11, which 3.12"
    )
    parser.add_argument("--only", nargs="*", default=MODELS)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=40, help="timed calls a turn")
    parser.add_argument("--count", action="store_true", help="count instructions, with valgrind")
    parser.add_argument("--whole", action="store_true", help="measure all of `edgeopt compile` as well")
    parser.add_argument("--again", nargs="*", default=[], help="kinds of rows to drop first: cost, race, ...")
    options = parser.parse_args()
    pythons = dict(item.split("=", 1) for item in options.python)
    bench = Bench(options.folder.absolute(), options.find_links, pythons)
    bench.drop(options.again)
    for peer in options.peers:
        bench.install(peer)
    peers = [peer for peer in options.peers if bench.find(kind="install", tool=peer, error="")]
    for model in options.only:
        bench.export(model)
        for tool in (OWN, *(["edgeopt compile"] if options.whole else []), *peers):
            bench.cost(tool, model, 0)
            bench.file(tool, model)
        for turn in range(1, options.rounds):
            for tool in (OWN, *(peer for peer in peers if peer not in SLOW)):
                bench.cost(tool, model, turn)
        bench.race(model, [OWN, *peers], options.calls)
        if options.count:
            for tool in (OWN, *peers):
                bench.count(tool, model)
    report(bench, options.only, peers)


class Bench:
    """The folder, with what has been measured in it."""

    def __init__(self, folder: Path, links: str, pythons: dict[str, str]) -> None:
        self.folder, self.links, self.pythons = folder, links, pythons
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "rows.jsonl"
        text = self.log.read_text() if self.log.exists() else ""
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def drop(self, kinds: list[str]) -> None:
        """Forgets rows of some kinds."""
        self.rows = [row for row in self.rows if row["kind"] not in kinds]
        self.log.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """The rows that have these values."""
        return [row for row in self.rows if all(row.get(key) == value for key, value in fields.items())]

    def keep(self, **row: Any) -> None:
        """Adds a row, on disk too."""
        self.rows.append(row)
        with self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def python(self, tool: str) -> str:
        """The Python of a tool's environment."""
        return str(self._environment(tool) / "bin/python") if tool in ENVIRONMENTS else sys.executable

    def _environment(self, tool: str) -> Path:
        return self.folder / "environments" / tool.replace(" ", "-")

    def install(self, tool: str) -> None:
        """Makes a tool's environment, unless it is there."""
        if self.find(kind="install", tool=tool, error=""):
            return
        version, installs = ENVIRONMENTS[tool]
        place = str(self._environment(tool))
        links = ["--find-links", self.links] if self.links else []
        python = self.pythons.get(version, version)
        commands = [["uv", "venv", "-q", "--clear", "--python", python, place]]
        start = ["uv", "pip", "install", "-q", "--python", place, *links]
        commands.extend([*start, *packages] for packages in installs)
        error = ""
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                error = done.stderr.strip()[-500:]
                break
        listed = subprocess.run(
            ["uv", "pip", "freeze", "--python", place], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
        self.keep(kind="install", tool=tool, error=error, packages=len(listed), megabytes=round(size / 1e6))

    def export(self, model: str) -> None:
        """Writes a network's weights and ONNX file."""
        if self._onnx(model).exists():
            return
        place = self._onnx(model).parent
        place.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
        command = [sys.executable, str(HERE / "export.py"), model, str(place)]
        subprocess.run(command, check=True, env=environment)

    def _onnx(self, model: str) -> Path:
        return self.folder / "models" / f"{model}.onnx"

    def _file(self, tool: str, model: str) -> Path:
        return self.folder / "files" / model / tool.replace(" ", "-") / "model.tflite"

    def cost(self, tool: str, model: str, turn: int) -> None:
        """Converts, and imports only, each in a process of its own."""
        if self.find(kind="cost", tool=tool, model=model, turn=turn):
            return
        out = self._file(tool, model)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        modules, told = out.parent / "modules.json", out.parent / "cost.json"
        places = [str(self._onnx(model)), str(self._onnx(model).with_suffix(".pt")), str(out), str(modules)]
        start = [self.python(tool), str(HERE / "convert.py"), tool]
        row: dict[str, Any] = {"kind": "cost", "tool": tool, "model": model, "turn": turn, "error": ""}
        if turn == 0 or not modules.exists():
            whole = process([*start, "convert", *places])
            row["error"] = whole["error"]
        if row["error"]:
            self.keep(**row)
        elif tool in SLOW:
            only = process([*start, "import", str(modules)])
            self.keep(**row, **{key: whole[key] - only[key] for key in ("seconds", "megabytes")})
        else:
            row["error"] = process([*start, "measure", *places, str(told)])["error"]
            self.keep(**row, **({} if row["error"] else json.loads(told.read_text())))

    def file(self, tool: str, model: str) -> None:
        """Looks at a file: operators, size, error."""
        if self.find(kind="file", tool=tool, model=model):
            return
        path = self._file(tool, model)
        row = {"kind": "file", "tool": tool, "model": model}
        if not path.exists():
            self.keep(**row, error="no file")
            return
        counts = operators(path)
        row |= {"operators": sum(counts.values()), "counts": counts, "bytes": path.stat().st_size}
        self.keep(**row, **judged(["compare", str(self._onnx(model)), str(path)]))

    def race(self, model: str, tools: list[str], calls: int) -> None:
        """Times the files that run, a process a turn."""
        if self.find(kind="race", model=model):
            return
        able = [tool for tool in tools if self._runs(tool, model)]
        turns = {tool: Turn(self._file(tool, model)) for tool in able}
        found = benchmark.measure(turns, OWN, runs=benchmark.ROUNDS * calls)
        for tool in able:
            row = {"kind": "race", "tool": tool, "model": model, "noise": found.noise}
            row["milliseconds"] = 1e3 * found.timings[tool].median
            if (beside := found.comparisons.get(tool)) is not None:
                low, high = beside.interval
                row |= {"ratio": beside.ratio, "low": low, "high": high, "verdict": beside.verdict}
            self.keep(**row)

    def _runs(self, tool: str, model: str) -> bool:
        return any("winners" in row for row in self.find(kind="file", tool=tool, model=model))

    def count(self, tool: str, model: str) -> None:
        """Counts the instructions of one call."""
        if not self._runs(tool, model) or self.find(kind="count", tool=tool, model=model):
            return
        command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--callgrind-out-file=/dev/null"]
        command += ["--toggle-collect=tflite::Subgraph::InvokeImpl()", sys.executable]
        command += [str(HERE / "judge.py"), "call", str(self._file(tool, model))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counted = re.search(r"Collected : (\d+)", done.stderr)
        if counted is not None:
            self.keep(kind="count", tool=tool, model=model, instructions=int(counted[1]))


class Turn:
    """A file as a candidate of ``edgeopt.benchmark``: every turn is a process of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        """One call, in a process of its own."""
        self.time(1)

    def time(self, count: int) -> list[float]:
        """So many calls in one process; their CPU seconds."""
        command = [sys.executable, str(HERE / "judge.py"), "time", str(count), str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
        return times


def process(command: list[str]) -> dict[str, Any]:
    """CPU seconds and peak memory of a process and its children, as the kernel counts them."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "CUDA_VISIBLE_DEVICES": ""}
    error = HERE.parent.parent / ".beside_tflite_converters.txt"
    with error.open("w") as sink:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    said = error.read_text(errors="replace").strip()
    error.unlink()
    return {
        "seconds": usage.ru_utime + usage.ru_stime,
        "megabytes": usage.ru_maxrss / 1024,
        "error": ""
        if child.returncode == 0
        else (said.splitlines() or [f"exit {child.returncode}"])[-1][:300],
    }


def judged(arguments: list[str]) -> dict[str, Any]:
    """What ``judge.py`` says, or its last words under ``said``."""
    command = [sys.executable, str(HERE / "judge.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"said": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def operators(path: Path) -> dict[str, int]:
    """How often each builtin occurs in a file, over all of its subgraphs."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    found: dict[str, int] = {}
    for graph in (model.Subgraphs(index) for index in range(model.SubgraphsLength())):
        for index in range(graph.OperatorsLength()):
            code = model.OperatorCodes(graph.Operators(index).OpcodeIndex())
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            found[name] = found.get(name, 0) + 1
    return found


def report(bench: Bench, models: list[str], peers: list[str]) -> None:
    """Prints a table of all models and tools, then the goals."""
    for row in bench.find(kind="install"):
        size = f"{row['packages']} packages, {row['megabytes']} MB"
        print(f"{row['tool']}: {row['error'] or size}")
    titles = ["model", "tool", "operators", "transposes", "KiB", "error", "M instructions", "latency, ms"]
    titles += ["ratio (95 %)", "beside ours", "CPU s", "times ours", "MB"]
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for model in models:
        measured = {row["tool"] for row in bench.find(kind="cost", model=model)}
        for tool in (OWN, "edgeopt compile", *peers):
            if tool not in measured:
                continue
            print(f"| {model} | {tool} | {' | '.join(cells(bench, model, tool))} |")
    print()
    for line in goals(bench, models, peers):
        print(line)


def cost(bench: Bench, tool: str, model: str, field: str) -> float | None:
    """The median over rounds."""
    values = [row[field] for row in bench.find(kind="cost", tool=tool, model=model) if field in row]
    return statistics.median(values) if values else None


def cells(bench: Bench, model: str, tool: str) -> Iterator[str]:
    """One row of the table."""
    seconds, ours = (cost(bench, name, model, "seconds") for name in (tool, OWN))
    file = bench.find(kind="file", tool=tool, model=model)[0]
    if seconds is None:
        yield from [bench.find(kind="cost", tool=tool, model=model)[0]["error"], *[""] * 10]
        return
    yield str(file["operators"])
    yield str(file["counts"].get("TRANSPOSE", 0))
    yield f"{file['bytes'] / 1024:.0f}"
    yield f"{file['error']:.0e}" if "winners" in file else f"does not run: {file['said']}"
    counted = next(iter(bench.find(kind="count", tool=tool, model=model)), None)
    yield f"{counted['instructions'] / 1e6:.1f}" if counted else ""
    race = next(iter(bench.find(kind="race", tool=tool, model=model)), None)
    yield f"{race['milliseconds']:.2f}" if race else ""
    beside = race if race is not None and "verdict" in race else None
    yield f"{beside['ratio']:.3f} ({beside['low']:.3f}-{beside['high']:.3f})" if beside else ""
    yield VERDICTS[beside["verdict"]] if beside else f"noise {race['noise']:.1%}" if race else ""
    yield f"{seconds:.2f}"
    yield f"{seconds / ours:.1f}" if ours else ""
    yield f"{cost(bench, tool, model, 'megabytes') or 0:.0f}"


def goals(bench: Bench, models: list[str], peers: list[str]) -> Iterator[str]:
    """What was to be reached beside each peer, and where it was not."""
    for peer in peers:
        missed: dict[str, list[str]] = {key: [] for key in ("operators", "transposes", "latency", "10x")}
        compared = 0
        for model in models:
            ours, theirs = (
                next(iter(bench.find(kind="file", tool=tool, model=model)), {}) for tool in (OWN, peer)
            )
            seconds = [cost(bench, tool, model, "seconds") for tool in (OWN, peer)]
            if "counts" not in ours or "counts" not in theirs or seconds[0] is None or seconds[1] is None:
                continue
            compared += 1
            if ours["operators"] > theirs["operators"]:
                missed["operators"].append(model)
            if ours["counts"].get("TRANSPOSE", 0) > theirs["counts"].get("TRANSPOSE", 0):
                missed["transposes"].append(model)
            race = next(iter(bench.find(kind="race", tool=peer, model=model)), None)
            if race and race["verdict"] == "faster":
                missed["latency"].append(f"{model} {race['ratio']:.3f}")
            if (times := seconds[1] / seconds[0]) < 10:
                missed["10x"].append(f"{model} {times:.1f}x")
        said = "; ".join(
            f"{key}: {'met' if not names else ', '.join(names)}" for key, names in missed.items()
        )
        print_models = f"{compared} of {len(models)} models"
        yield f"beside {peer} ({print_models}): {said}"


if __name__ == "__main__":
    if shutil.which("uv") is None:
        sys.exit("uv is needed to make the peers' environments")
    main()
