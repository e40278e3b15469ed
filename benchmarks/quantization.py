"""What the default plan's int8 keeps of every model of the zoo, and what each of its steps bought.

``python -m benchmarks.quantization [--device raspberry-pi-4] [--effort more] [NAME]...``
prints two Markdown tables. The first has the metric on the evaluation data with its 95 % interval, the
fidelity to the float model there, top-1 agreement, size and processor seconds, beside the best recorded
peer (``benchmarks.beside_int8_peers`` runs peers in the same run). The second has,
for each step of the plan, the fidelity on the validation samples after it and its processor seconds.

The recorded peers were measured once on the same data and splits (onnxruntime 1.32, NNCF 3.4, AMD Quark
0.13, AIMET 2.42, ESP-PPQ 1.3.12, ModelOpt 0.47), each in the best of many settings picked by hand; the
figure is the signal-to-noise ratio in dB over the evaluation inputs.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.zoo.compiling import DEVICE, each, measure, plan
from benchmarks.zoo.models import ENTRIES
from edgeopt import units

PEERS: dict[str, tuple[str, float]] = {
    "kws_dscnn_mlperf_tiny": ("Quark CLE + AdaRound", 31.7),
    "kws_dscnn_rescaled": ("Quark CLE + AdaRound", 31.3),
    "resnet20_cifar10": ("Quark CLE + AdaQuant", 28.9),
    "mobilenetv3_cifar10": ("Quark CLE + AdaQuant", 25.7),
    "tiny_darknet_imagenet": ("Quark CLE + AdaQuant", 25.7),
    "yolo_fastestv2_rescaled": ("ESP-PPQ equalization + bias correction", 22.0),
    "dncnn_s_25": ("NNCF mixed", 43.8),
    "cct_vit_cifar10": ("Quark SmoothQuant .5 + AdaQuant, products", 39.1),
    "agnews_text_transformer": ("Quark SmoothQuant .5, products", 48.4),
    "minilm_l6_sts": ("Quark SmoothQuant .6, products", 21.6),
}
"""Per model the peer with the highest signal-to-noise ratio in the regime that the plan works in."""


def row(body: dict[str, Any]) -> str:
    """One line of the first table."""
    name, after = body["name"], body["after"]
    metric = next((key for key in body["before"] if key in after and key in _metrics(body)), None)
    cells = [name]
    for side in ("before", "after"):
        figure = body[side][metric] if metric else None
        cells.append("" if figure is None else f"{figure['value']:.4g}{_interval(figure)} {figure['unit']}")
    calls = body["calls"]
    cells.append("" if calls["fidelity"] is None else f"{calls['fidelity']:.1f}")
    cells.append("" if calls["agreement"] is None else f"{calls['agreement']:.2%}")
    best = PEERS.get(name)
    cells.append("" if best is None else f"{best[1]} ({best[0]})")
    cells += [units.format_size(after["size"]["value"]), f"{body['process']['cpu']:.0f}"]
    cells.append(f"{body['process']['mb']:.0f}")
    return "| " + " | ".join(cells) + " |"


def _metrics(body: dict[str, Any]) -> list[str]:
    known = ("size", "latency", "peak_memory", "fidelity", "accuracy_drop")
    return [key for key in body["before"] if key not in known]


def _interval(figure: dict[str, Any]) -> str:
    return "" if figure["interval"] is None else " [{:.4g}, {:.4g}]".format(*figure["interval"])


def steps_of(body: dict[str, Any]) -> list[str]:
    """The lines of the second table: every step of the quantization."""
    lines = []
    for step in body["ledger"]:
        fidelity = step["figures"].get("fidelity")
        if fidelity is None and step["pass"] not in ("smooth-activations", "equalize-channels"):
            continue
        shown = "exact" if fidelity is None else f"{fidelity['value']:.1f}"
        part = "" if step["part"] == "model" else f" ({step['part']})"
        lines.append(
            f"| {body['name']}{part} | {step['pass']} | {shown} | {step['cpu_seconds']:.1f} "
            f"| {step['summary']} |"
        )
    return lines


def main() -> None:
    """Measures the models named, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--effort", default="default")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        body = measure(options.one, plan({"effort": options.effort}), options.device)
        print(json.dumps(body, default=str))
        return
    header = "| model | float | int8 [95 %] | fidelity dB | agreement | best peer dB |"
    header += " size | CPU s | MB |"
    print(header + "\n|" + "---|" * (header.count("|") - 1))
    bought: list[str] = []
    arguments = ["--device", options.device, "--effort", options.effort]
    for _, line in each("benchmarks.quantization", options.names or ENTRIES, arguments):
        body = json.loads(line)
        bought += steps_of(body)
        print(row(body), flush=True)
    print("\n| model | step | fidelity on validation, dB | CPU s | what |\n|---|---|---|---|---|")
    print("\n".join(bought))


if __name__ == "__main__":
    main()
