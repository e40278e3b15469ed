"""How often a benchmark is fooled: a model against itself, and against one that is known to be slower.

    python -m benchmarks.verdicts --tries 40
    python -m benchmarks.verdicts --tries 40 --on ssh

Every try is what ``edgeopt bench A --against B`` does, memory aside, with a seed of its own: warm-up, blocks
in random order, noise floor, interval on the ratio, verdict. A is the built-in example, B first A itself
(the only right verdict is inconclusive), then A with its convolutions made a second time, whose true ratio is
measured on all tries together. ``--on ssh`` takes a real OpenSSH server on loopback.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runners")]

import loopback  # noqa: E402

from edgeopt import benchmark, example, runners  # noqa: E402
from edgeopt.data import SeededSamples  # noqa: E402


def make_slower(folder: Path) -> Path:
    """The example with its largest convolution made twice, its two results averaged."""
    model = ir.load(example.MODEL)
    graph = model.graph
    convolutions = [node for node in graph if node.op_type == "Conv"]
    last = max(convolutions, key=lambda node: node.inputs[1].const_value.size)  # type: ignore[union-attr]
    value = last.outputs[0]
    users = [(usage.node, usage.idx) for usage in value.uses()]
    # Another input, since a runtime computes equal nodes only once.
    tiny = ir.Value(name="tiny", const_value=ir.tensor(np.float32(1.0001), name="tiny"))
    half = ir.Value(name="half", const_value=ir.tensor(np.float32(0.5), name="half"))
    for constant in (tiny, half):
        graph.register_initializer(constant)
    scaled = ir.node("Mul", [last.inputs[0], tiny])
    again = ir.node("Conv", [scaled.outputs[0], *last.inputs[1:]], attributes=last.attributes)
    total = ir.node("Add", [value, again.outputs[0]])
    mean = ir.node("Mul", [total.outputs[0], half])
    for number, node in enumerate((scaled, again, total, mean)):
        node.outputs[0].name = f"slower{number}"
    graph.insert_after(last, [scaled, again, total, mean])
    for node, position in users:
        node.replace_input_with(position, mean.outputs[0])
    ir.save(model, folder / "slower.onnx")
    return folder / "slower.onnx"


@contextmanager
def place(where: str, folder: Path) -> Iterator[runners.Runner]:
    """The runner, with a server of its own where it needs one."""
    if where != "ssh":
        with runners.find(where) as runner:
            yield runner
        return
    server = loopback.start(folder / "ssh")
    os.environ["EDGEOPT_SSH"] = server.client
    try:
        with server.board() as board:
            yield board
    finally:
        server.stop()


def tries(
    runner: runners.Runner, model: Path, against: Path, count: int, seconds: float
) -> list[benchmark.Result]:
    """Benchmarks one model against another, again and again, each time opened anew."""
    found = []
    for seed in range(count):
        opened = {"model": runner.open(model)["model"], "against": runner.open(against)["model"]}
        feeds = next(SeededSamples(opened["model"].inputs, 1, seed).feeds())
        timers = {name: runner.timer(session, feeds) for name, session in opened.items()}
        found.append(benchmark.measure(timers, "against", seed=seed, seconds=seconds))
        for session in opened.values():
            session.close()
    return found


def report(title: str, results: list[benchmark.Result]) -> Counter[str]:
    """Prints the verdicts and the figures behind them."""
    compared = [result.comparisons["model"] for result in results]
    verdicts: Counter[str] = Counter(comparison.verdict for comparison in compared)
    ratios = np.array([comparison.ratio for comparison in compared])
    floors = np.array([result.noise for result in results], np.float64)
    whole = float(np.median(ratios))
    hit = sum(comparison.interval[0] <= whole <= comparison.interval[1] for comparison in compared)
    print(f"{title}: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.most_common())}")
    print(
        f"  ratio {whole:.3f} (single tries {ratios.min():.3f} to {ratios.max():.3f}), noise floor "
        f"{100 * np.median(floors):.1f} % (up to {100 * floors.max():.1f} %), the median ratio lies in "
        f"{hit} of {len(results)} intervals"
    )
    return verdicts


def main() -> int:
    """Exits with 1 where a model against itself is not inconclusive in 95 % of the tries."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tries", type=int, default=40)
    options.add_argument("--on", default="host", help="host, ssh, or an address of a board")
    options.add_argument("--seconds", type=float, default=benchmark.SECONDS, help="timed calls of one try")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as text:
        folder = Path(text)
        with place(chosen.on, folder) as runner:
            same = tries(runner, example.MODEL, example.MODEL, chosen.tries, chosen.seconds)
            verdicts = report(f"{chosen.on}: a model against itself", same)
            slower = tries(runner, make_slower(folder), example.MODEL, chosen.tries, chosen.seconds)
            report(f"{chosen.on}: against a slower twin", slower)
    return int(verdicts["inconclusive"] < 0.95 * chosen.tries)


if __name__ == "__main__":
    sys.exit(main())
