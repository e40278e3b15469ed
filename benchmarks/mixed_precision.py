"""Which layers stay in float: the search beside the two greedy orders, in predicted milliseconds.

``EDGEOPT_ZOO=... python -m benchmarks.mixed_precision [--device raspberry-pi-4] [--more 2 4] [NAME]...``
gives static int8 with min-max ranges so many dB more, once by ``restore-float``'s search and once by the
shortest beginning that suffices of either greedy order (the loudest layers first, the loudest per predicted
second first), on the same measurements of noise and with the same predictor. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt import passes
from edgeopt.graph.opset import raise_opset
from edgeopt.graph.quantization import read, strip
from edgeopt.load import load
from edgeopt.optimization import EXACT
from edgeopt.passes import Context, Facets, Pass
from edgeopt.passes._sensitivity import Trial
from edgeopt.passes.restore_float import SAMPLES, Search
from edgeopt.platform import load_platform
from edgeopt.predict import RooflinePredictor

MODELS = ("kws_dscnn_mlperf_tiny", "resnet20_cifar10", "mobilenetv3_cifar10")


def measure(name: str, device: str, more: Sequence[float]) -> None:
    """Prints the row of one model."""
    entry = ENTRIES[name]
    data, _, _ = open_entry(entry, entry.sessions())
    model, _ = raise_opset(load(str(next(iter(entry.files().values())))))
    original = model.clone()
    platform = load_platform(device, "onnxruntime")
    facets = Facets(
        rules=platform.rules,
        calibration=data.calibrate,
        validation=data.validate,
        teacher=original,
        predictor=RooflinePredictor(platform),
    )
    for step in EXACT:
        _apply(step, model, Context(verify="off"))
    _apply("static-int8", model, Context(facets), observer="min-max", samples=64)
    params = read(model)
    strip(model)
    assert data.validate is not None
    trial = Trial(model, params, data.validate, original)
    start = time.process_time()
    search = Search(trial, Context(facets))
    ranked = time.process_time() - start
    before = trial.measured(params, SAMPLES).weakest
    everything = frozenset(trial.layers)
    cells = [f"{1e3 * search.seconds(found):.2f}" for found in (everything, frozenset[str]())]
    for decibels in more:
        start, known = time.process_time(), len(search.measured)
        chosen = search.choice(before + decibels)
        seconds = time.process_time() - start
        looks = len(search.measured) - known
        greedy = [_shortest(search, order, before + decibels) for order in search.orders(before + decibels)]
        figures = " and ".join(f"{1e3 * search.seconds(item):.2f}" for item in greedy)
        cells.append(f"{1e3 * search.seconds(chosen):.2f} (greedy {figures}; {looks} looks, {seconds:.1f} s)")
    print(f"| {name} | {' | '.join(cells)} | {ranked:.1f} |", flush=True)


def _shortest(search: Search, order: Sequence[str], wanted: float) -> frozenset[str]:
    """The shortest beginning of an order that suffices, by halving."""
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        enough = max(search.noise(frozenset(order[:middle])).values()) <= 10 ** (-wanted / 10)
        low, high = (low, middle) if enough else (middle, high)
    return frozenset(order[:high])


def _apply(name: str, model: object, context: Context, **options: object) -> None:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    step.apply(model, context)  # type: ignore[arg-type]


def main() -> None:
    """Measures the models named, or three of different kinds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=MODELS)
    parser.add_argument("--device", default="raspberry-pi-4")
    parser.add_argument("--more", nargs="*", type=float, default=(2.0, 4.0))
    options = parser.parse_args()
    heads = [f"+{decibels:g} dB, ms" for decibels in options.more]
    print(f"| model | float ms | int8 ms | {' | '.join(heads)} | ranking CPU s |")
    print("|---" * (4 + len(heads)) + "|", flush=True)
    for name in options.names:
        measure(name, options.device, options.more)


if __name__ == "__main__":
    main()
