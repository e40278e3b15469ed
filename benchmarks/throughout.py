"""A sentence encoder with 8 bits throughout: what it keeps, and what was tried.

``python -m benchmarks.throughout [--measure measure.py] [--effort default]`` compiles MiniLM with everything
between products at 8 bits, and again with the residual sums at 16, and prints Spearman's correlation on the
test pairs, the fidelity there and the processor seconds. ``--measure`` names a script that measures the
artifact's file from outside, as ``SCRIPT NAME FILE``.

``python -m benchmarks.throughout --attempts`` quantizes the float model, without the steps that recover
accuracy, in several ways, and prints the fidelity over 64 sentences of the test pairs (ranges from 64 of the
calibration pairs):

- one scale for every value, from its extremes or of least squared error, and with residual sums at 16 bits;
- residual sums, and the linear outputs that flow into them, rotated by a random orthogonal matrix before they
  are rounded and back after (as QuaRot and SpinQuant do; Ashkboos et al. 2024, Liu et al. 2024). It is a
  simulation: the scale and shift of a normalization behind the sum do not commute with a rotation, so that
  every normalization would need a product more;
- a scale per channel for the residual stream, as ``throughout`` does;
- the same after ``smooth-activations``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.zoo.compiling import each, measure, plan
from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt import fidelity, passes
from edgeopt.data.evaluation import unseal
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.graph.observers import channel_scales, observe, parameters
from edgeopt.graph.quantization import Names, QuantParams, Site, add_initializer, write
from edgeopt.harness import record_calls
from edgeopt.load import load
from edgeopt.optimization import optimized
from edgeopt.passes._rules import quantization_rules
from edgeopt.passes._throughout import Throughout, place_throughout
from edgeopt.passes.base import Context, Facets, Pass

NAME = "minilm_l6_sts"
CALLS = 8


class Recorded:
    """Calls held in memory."""

    labels = None

    def __init__(self, calls: list[dict[str, np.ndarray]], digest: str) -> None:
        self.calls, self.digest = calls, digest

    def __len__(self) -> int:
        return sum(max(len(array) for array in call.values()) for call in self.calls)

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """The calls as they are."""
        return iter(self.calls)


def compiled(regime: str, effort: str, script: str) -> dict[str, Any]:
    """Compiles the model and judges its artifact."""
    steps = plan({"scheme": "static-int8", "throughout": regime, "effort": effort})
    body = measure(NAME, steps, script=script)
    return {
        "float": body["before"]["spearman"]["value"],
        "spearman": body["after"]["spearman"]["value"],
        "size": body["after"]["size"]["value"],
        "cpu": body["process"]["cpu"],
        "fidelity": body["calls"]["fidelity"],
        "steps": [(step["pass"], step["summary"]) for step in body["ledger"]],
        "outside": body["outside"],
    }


def attempts() -> Iterator[tuple[str, float]]:
    """Yields what was tried with its fidelity in dB."""
    entry = ENTRIES[NAME]
    sessions = entry.sessions()
    data, _, harness = open_entry(entry, sessions)
    assert harness is not None and data.calibrate is not None and data.evaluate is not None
    recorded = record_calls(harness, sessions, data.calibrate)["model"].feeds(8)
    calls = list(islice(recorded, CALLS + CALLS // 2))
    held, validation = Recorded(calls[:CALLS], "calibration"), Recorded(calls[CALLS:], "validation")
    judged = list(islice(record_calls(harness, sessions, unseal(data.evaluate))["model"].feeds(8), CALLS))
    model, _ = optimized(load(entry.files()["model"]), opset=21, verify="off")
    name_nodes(model)

    def worth(candidate: ir.Model) -> float:
        with Executor(model, optimize=True) as one, Executor(candidate) as other:
            return fidelity.compare(one.run, other.run, judged).figure

    rules = quantization_rules(None)
    flow = place_throughout(model, rules)
    observers = observe(model, flow.placement.observed, held.calls)
    for method in ("min-max", "mse"):
        yield f"one scale a value, {method}", worth(_plain(model, flow, observers, method, ()))
    wide = _plain(model, flow, observers, "mse", flow.sums)
    yield "one scale a value, mse, residual sums at 16 bits", worth(wide)
    yield "residual sums and linear outputs rotated", worth(_rotated(model, flow, held.calls))
    for prepared in (False, True):
        for regime in ("int8", "residual-int16"):
            candidate = model.clone()
            context = Context(Facets(calibration=held, validation=validation))
            if prepared:
                _apply("smooth-activations", {}, candidate, context)
            _apply("static-int8", {"throughout": regime, "observer": "mse"}, candidate, context)
            label = "a scale per channel of the residual stream" + (", smoothed" if prepared else "")
            yield label + (", sums at 16 bits" if regime != "int8" else ""), worth(candidate)


def _apply(name: str, options: Mapping[str, Any], model: ir.Model, context: Context) -> None:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    step.apply(model, context)


def _weights(model: ir.Model, flow: Throughout) -> dict[Site, list[QuantParams]]:
    found = {}
    for where, constant in flow.placement.constants.items():
        tensor = model.graph.initializers[constant.value].const_value
        assert tensor is not None
        dtype = ir.DataType[constant.rule.dtype.upper()]
        scale = channel_scales(tensor.numpy(), constant.axis, dtype)
        found[where] = [QuantParams(dtype, scale, None, None if scale.ndim == 0 else constant.axis)]
    return found


def _plain(
    model: ir.Model, flow: Throughout, observers: Mapping[str, Any], method: Any, wide: Any
) -> ir.Model:
    """One scale for every value; ``wide`` values get 16 bits."""
    params = _weights(model, flow)
    for where, origin in flow.placement.activations.items():
        rule = flow.placement.rules[where]
        dtype = ir.DataType.UINT16 if origin in wide else ir.DataType[rule.dtype.upper()]
        if rule.scale is not None:
            params[where] = [QuantParams(dtype, np.asarray(rule.scale, np.float32), None)]
            continue
        low, high = observers[origin].range("min-max" if origin in wide else method, dtype)
        params[where] = [parameters(low, high, dtype)]
    changed = model.clone()
    write(changed, params)
    return changed


def _rotated(model: ir.Model, flow: Throughout, calls: list[dict[str, np.ndarray]]) -> ir.Model:
    """Rounds the residual stream in a random orthonormal basis."""
    changed = model.clone()
    values = {output.name: output for node in changed.graph for output in node.outputs}
    names = Names(changed)
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((384, 384)))
    rotated = {}
    for name in flow.channels:
        value = values[name]
        node = value.producer()
        assert node is not None
        pair = []
        for suffix, matrix in (("there", basis), ("back", basis.T)):
            constant = add_initializer(
                changed.graph, names.value(f"{name}_{suffix}"), ir.tensor(matrix.astype(np.float32))
            )
            source = pair[-1].outputs[0] if pair else value
            product = ir.node("MatMul", [source, constant], name=names.node(f"{name}_{suffix}_node"))
            product.outputs[0].name = names.value(f"{name}_{suffix}_value")
            product.outputs[0].type, product.outputs[0].shape = value.type, value.shape
            pair.append(product)
        for use in tuple(value.uses()):
            if use.node is not pair[0]:
                use.node.replace_input_with(use.idx, pair[1].outputs[0])
        changed.graph.insert_after(node, pair)
        rotated[name] = pair[0].outputs[0].name or ""
    wanted = {where: rotated.get(origin, origin) for where, origin in flow.placement.activations.items()}
    observers = observe(changed, list(dict.fromkeys(wanted.values())), calls)
    params = _weights(changed, flow)
    for where, origin in wanted.items():
        rule = flow.placement.rules[where]
        dtype = ir.DataType[rule.dtype.upper()]
        chosen = Site(rotated[where.value]) if where.value in rotated else where
        if rule.scale is not None:
            params[chosen] = [QuantParams(dtype, np.asarray(rule.scale, np.float32), None)]
        else:
            params[chosen] = [parameters(*observers[origin].range("mse", dtype), dtype)]
    write(changed, params)
    return changed


def main() -> None:
    """Prints what was asked for; each compilation runs in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--attempts", action="store_true")
    parser.add_argument("--measure", default="")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(compiled(options.one, options.effort, options.measure), default=str))
        return
    if options.attempts:
        for label, value in attempts():
            print(f"| {label} | {value:.1f} |", flush=True)
        return
    arguments = ["--measure", options.measure, "--effort", options.effort]
    for regime, line in each("benchmarks.throughout", ("int8", "residual-int16"), arguments):
        print(f"{regime}: {line}", flush=True)


if __name__ == "__main__":
    main()
