"""What searching ranges end to end buys: fidelity on validation and on evaluation data.

``EDGEOPT_ZOO=... python -m benchmarks.range_search [--device raspberry-pi-4] [--seconds 40] [NAME]...`` runs
the plan's steps up to static int8, then ``gptq`` with and without ``search-ranges`` before it, and compares
each with the float original: on the validation samples, which the steps see, and on up to 1000 evaluation
samples. Prints a Markdown table of dB on validation / on evaluation samples.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice

import onnx_ir as ir

from benchmarks.ablation import CALLS
from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt import passes
from edgeopt.data.evaluation import unseal
from edgeopt.graph.opset import raise_opset
from edgeopt.load import load
from edgeopt.optimization import EXACT
from edgeopt.passes import Context, Facets, Pass, Plan
from edgeopt.passes._judge import Judge
from edgeopt.passes.base import Entry
from edgeopt.passes.static_int8 import StaticInt8
from edgeopt.platform import load_platform


def measure(name: str, device: str, seconds: float) -> None:
    """Prints the rows of one model."""
    entry = ENTRIES[name]
    data, _, _ = open_entry(entry, entry.sessions())
    original, _ = raise_opset(load(str(next(iter(entry.files().values())))))
    assert data.validate is not None and data.evaluate is not None
    facets = Facets(
        rules=load_platform(device, "onnxruntime").rules,
        calibration=data.calibrate,
        validation=data.validate,
        teacher=original,
    )
    judges = (
        Judge.of(original, data.validate.feeds(8)),
        Judge.of(original, islice(unseal(data.evaluate).feeds(8), CALLS)),  # this script judges
    )
    model = original.clone()
    for step in EXACT:
        _apply(passes.make(step), model, Context(verify="off"))
    plan, ledger = passes.make("quantize"), list[Entry]()
    assert isinstance(plan, Plan)
    while not ledger or not isinstance(ledger[-1].step, StaticInt8):
        following = plan.next(model, Context(facets, plan.reads), ledger)
        assert following is not None
        ledger.append(Entry(following, _apply(following, model, Context(facets, following.reads)), model))
    found = [f"| {name}", *_figures(judges, model)]
    searched = model.clone()
    search = passes.make("search-ranges", {"seconds": seconds})
    start = time.process_time()
    change = _apply(search, searched, Context(facets, search.reads))
    taken = time.process_time() - start
    found += _figures(judges, searched)
    for item in (model, searched):
        _apply(passes.make("gptq"), item, Context(facets))
        found += _figures(judges, item)
    print(" | ".join(found), f"| {taken:.1f} | {change.summary} |", flush=True)


def _figures(judges: tuple[Judge, Judge], model: ir.Model) -> list[str]:
    return [" / ".join(f"{judge.decibels(model):.2f}" for judge in judges)]


def _apply(step: object, model: ir.Model, context: Context) -> passes.Change:
    assert isinstance(step, Pass)
    return step.apply(model, context)


def main() -> None:
    """Measures the models named, or four of different kinds."""
    parser = argparse.ArgumentParser()
    default = ("kws_dscnn_mlperf_tiny", "resnet20_cifar10", "cct_vit_cifar10", "tiny_darknet_imagenet")
    parser.add_argument("names", nargs="*", default=default)
    parser.add_argument("--device", default="raspberry-pi-4")
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    print("| model | static int8 | searched | gptq | searched, gptq | CPU s of the search | what |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.names:
        measure(name, options.device, options.seconds)


if __name__ == "__main__":
    main()
