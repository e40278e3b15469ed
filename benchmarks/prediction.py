"""How far predicted latencies are from published ones.

Two tables are needed; they are not part of this repository: ``ncnn_arm_runs.csv``, the results that
ncnn's community published for boards and phones, and ``ncnn_models.csv``, the arithmetic of each of its
benchmark models by class of kernel. Their folder is given as the argument or by EDGEOPT_FACTS.

    python -m benchmarks.prediction FOLDER          error of the shipped table
    python -m benchmarks.prediction FOLDER --fit    fit the table anew, with each SoC held out in turn

The error is that of the shipped formula and table (``edgeopt/predict``), with the bandwidths that
tinymembench copies at where somebody published them, and two fifths of the bus's peak elsewhere.
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeopt.predict.efficiency import Efficiency, load_efficiency

COPY = {  # GB/s read plus written, twice the memcpy of sbc-bench's Results.md
    "bcm2837": 2.3,
    "pi4": 4.7,
    "pi5": 12.0,
    "rk3588": 21.6,
    "rk356x": 6.0,
    "rk3399": 7.0,
    "a311d": 10.0,
    "h616": 2.4,
    "h2": 1.7,
    "rk3328": 2.7,
    "rk3288": 3.0,
    "orin": 13.5,
    "tx1": 7.5,
    "o6": 33.8,
    "ft2000": 7.0,
    "phypi": 5.6,
    "m1": 54.2,
}
SAME = {"bcm2837": "bcm2837", "kirin970": "a73", "sd835": "a73"}
"""SoCs that are held out together; all others stand for themselves."""

CLASSES = {
    "mac_wino": "conv3x3",
    "mac_ckk": "conv",
    "mac_c1": "conv1x1",
    "mac_first": "conv-first",
    "mac_dw": "depthwise",
    "mac_fc": "fully-connected",
}


@dataclass
class Rows:
    """Published runs as arrays: per row the machine, per class of kernel the work, the seconds."""

    soc: np.ndarray
    threads: np.ndarray
    clock: np.ndarray
    bandwidth: np.ndarray
    peak: np.ndarray  # MACs per cycle and core in the precision that ran
    dtype: np.ndarray
    dotprod: np.ndarray
    in_order: np.ndarray
    macs: np.ndarray  # rows x classes
    elementwise: np.ndarray  # bytes
    weights: np.ndarray  # bytes of fully connected layers
    layers: np.ndarray
    seconds: np.ndarray
    model: np.ndarray


def read(folder: Path) -> Rows:
    """Reads both tables and joins them."""
    with (folder / "ncnn_models.csv").open() as file:
        models = {row["model"]: row for row in csv.DictReader(file)}
    with (folder / "ncnn_arm_runs.csv").open() as file:
        runs = [row for row in csv.DictReader(file) if row["mixed_clusters"] == "0"]
    columns: dict[str, list[object]] = {name: [] for name in Rows.__dataclass_fields__}
    for run in runs:
        model = models[run["model"]]
        half = run["fp16"] == "1" and run["int8"] == "0"
        dtype = "int8" if run["int8"] == "1" else "float16" if half else "float32"
        wide = float(run["fp32_macs_per_cycle"])
        dotprod = run["dotprod"] == "1"
        factor = {"float32": 1, "float16": 2, "int8": 4 if dotprod else 2}[dtype]
        width = {"float32": 4, "float16": 2, "int8": 1}[dtype]
        columns["soc"].append(SAME.get(run["soc"], run["soc"]))
        columns["threads"].append(float(run["threads"]))
        columns["clock"].append(float(run["clock_ghz"]) * 1e9)
        columns["bandwidth"].append(COPY.get(run["soc"], 0.4 * float(run["bandwidth_gbs"])) * 1e9)
        columns["peak"].append(wide * factor)
        columns["dtype"].append(dtype)
        columns["dotprod"].append(dotprod)
        columns["in_order"].append(run["in_order"] == "1")
        columns["macs"].append([float(model[name]) for name in CLASSES])
        columns["elementwise"].append(float(model["act_el"]) * width)
        columns["weights"].append(float(model["mac_fc"]) * width)
        columns["layers"].append(float(model["nlay"]))
        columns["seconds"].append(float(run["min_ms"]) / 1e3)
        columns["model"].append(run["model"])
    return Rows(**{name: np.array(values) for name, values in columns.items()})  # type: ignore[arg-type]


NAMES = [
    *CLASSES.values(),
    "elementwise",
    "threads",
    "overhead",
    "in_order",
    "in_order_dotprod",
    "float16",
    "int8",
    "dotprod",
]


def predict(rows: Rows, table: dict[str, float]) -> np.ndarray:
    """The formula of ``edgeopt.predict`` on whole arrays."""
    slow = np.where(rows.dotprod, table["in_order_dotprod"], table["in_order"])
    scale = np.where(rows.in_order, slow, 1.0)
    scale = scale * np.where(rows.dtype == "float16", table["float16"], 1.0)
    scale = scale * np.where(
        rows.dtype == "int8", np.where(rows.dotprod, table["dotprod"], table["int8"]), 1.0
    )
    rate = rows.threads ** table["threads"] * rows.clock * rows.peak * scale
    seconds = np.zeros(len(rate))
    for column, kernel in enumerate(CLASSES.values()):
        compute = rows.macs[:, column] / (rate * table[kernel])
        if kernel == "fully-connected":
            compute = np.maximum(compute, rows.weights / rows.bandwidth)
        seconds += compute
    seconds += rows.elementwise / (rows.bandwidth * table["elementwise"])
    return np.asarray(seconds + rows.layers * table["overhead"] / rows.clock)


def fit(rows: Rows, keep: np.ndarray, start: dict[str, float]) -> dict[str, float]:
    """Fits the table on some rows: robust Gauss-Newton on the logarithm of the latency."""
    chosen = Rows(**{name: getattr(rows, name)[keep] for name in Rows.__dataclass_fields__})
    weight = 1 / np.sqrt(np.bincount(np.unique(chosen.soc, return_inverse=True)[1]))
    weight = weight[np.unique(chosen.soc, return_inverse=True)[1]]  # no SoC outweighs the others
    prior = np.log([start[name] for name in NAMES])
    point = prior.copy()

    def residual(at: np.ndarray) -> np.ndarray:
        table = dict(zip(NAMES, np.exp(at), strict=True))
        return np.asarray(np.log(chosen.seconds) - np.log(predict(chosen, table)))

    for _ in range(25):
        base = residual(point)
        jacobian = np.stack(
            [(residual(point + 1e-4 * unit) - base) / 1e-4 for unit in np.eye(len(point))], axis=1
        )
        robust = weight / np.sqrt(1 + (base / 0.3) ** 2)
        left = (jacobian * robust[:, None] ** 2).T @ jacobian + 0.05 * np.eye(len(point))
        right = (jacobian * robust[:, None] ** 2).T @ base + 0.05 * (point - prior)
        step = np.clip(np.linalg.solve(left, right), -0.5, 0.5)
        point = point - step
        if np.abs(step).max() < 1e-4:
            break
    return dict(zip(NAMES, map(float, np.exp(point)), strict=True))


def table_of(efficiency: Efficiency) -> dict[str, float]:
    """The shipped table under the names used here."""
    return {
        **{kernel: efficiency.kernels[kernel] for kernel in CLASSES.values()},
        "elementwise": efficiency.bandwidth,
        "threads": efficiency.threads,
        "overhead": efficiency.overhead,
        "in_order": efficiency.in_order,
        "in_order_dotprod": efficiency.in_order_dotprod,
        "float16": efficiency.float16,
        "int8": efficiency.int8,
        "dotprod": efficiency.int8_dotprod,
    }


def report(label: str, error: np.ndarray) -> None:
    """Prints the spread of ratios measured / predicted, given as logarithms."""
    absolute = np.abs(np.expm1(error))
    low, high = np.exp(np.quantile(error, [0.025, 0.975]))
    median, most = np.quantile(absolute, [0.5, 0.9])
    print(
        f"{label:34} {len(error):5} rows   median {median:5.1%}   90 % {most:6.1%}"
        f"   measured/predicted {low:.2f} .. {high:.2f}"
    )


BOARDS = {"Raspberry Pi 4B": (4.0, 5.1, False), "Raspberry Pi 3B+": (4.0, 2.26, True)}
"""Of boards in ``published_latency.csv``: float32 MACs per cycle, GB/s copied, in order."""

NETWORKS = {"MobileNetV1 1.0 224": "mobilenet", "MobileNetV2 1.0 224": "mobilenet_v2"}


def another_runtime(folder: Path, table: dict[str, float]) -> None:
    """Prints how long XNNPACK's published runs took beside the prediction for ncnn."""
    with (folder / "ncnn_models.csv").open() as file:
        models = {row["model"]: row for row in csv.DictReader(file)}
    with (folder / "published_latency.csv").open() as file:
        runs = [row for row in csv.DictReader(file) if row["runtime"].startswith("XNNPACK")]
    for run in runs:
        if run["device"] not in BOARDS or run["model"] not in NETWORKS:
            continue
        model = models[NETWORKS[run["model"]]]
        peak, bandwidth, in_order = BOARDS[run["device"]]
        int8 = "int8" in run["precision"]
        row = Rows(
            soc=np.array([run["device"]]),
            threads=np.array([float(run["threads"])]),
            clock=np.array([float(run["ghz"]) * 1e9]),
            bandwidth=np.array([bandwidth * 1e9]),
            peak=np.array([peak * (2 if int8 else 1)]),
            dtype=np.array(["int8" if int8 else "float32"]),
            dotprod=np.array([False]),
            in_order=np.array([in_order]),
            macs=np.array([[float(model[name]) for name in CLASSES]]),
            elementwise=np.array([float(model["act_el"]) * (1 if int8 else 4)]),
            weights=np.array([float(model["mac_fc"]) * (1 if int8 else 4)]),
            layers=np.array([float(model["nlay"])]),
            seconds=np.array([float(run["latency_ms"]) / 1e3]),
            model=np.array([run["model"]]),
        )
        ratio = float(row.seconds[0] / predict(row, table)[0])
        print(f"XNNPACK {run['device']:18} {run['model']:20} {run['precision']:18} ratio {ratio:.2f}")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", default=os.environ.get("EDGEOPT_FACTS"), help="of the two tables"
    )
    parser.add_argument("--fit", action="store_true", help="fit the table anew")
    arguments = parser.parse_args()
    if not arguments.folder:
        parser.error("give the folder of the tables, or set EDGEOPT_FACTS")
    rows = read(Path(arguments.folder))
    table = table_of(load_efficiency())
    everything = np.ones(len(rows.seconds), bool)
    error = np.log(rows.seconds) - np.log(predict(rows, table))
    report("shipped table, all runs", error)
    for dtype in ("float32", "float16", "int8"):
        report(f"  {dtype}", error[rows.dtype == dtype])
    if (Path(arguments.folder) / "published_latency.csv").is_file():
        another_runtime(Path(arguments.folder), table)
    if not arguments.fit:
        return
    held = np.zeros(len(rows.seconds))
    for soc in np.unique(rows.soc):
        out = rows.soc == soc
        held[out] = np.log(rows.seconds[out]) - np.log(
            predict(
                Rows(**{n: getattr(rows, n)[out] for n in Rows.__dataclass_fields__}), fit(rows, ~out, table)
            )
        )
    report("held-out SoC, all runs", held)
    for dtype in ("float32", "float16", "int8"):
        report(f"  {dtype}", held[rows.dtype == dtype])
    for soc in np.unique(rows.soc):
        report(f"    {soc}", held[rows.soc == soc])
    for name, value in fit(rows, everything, table).items():
        print(f"{name:16} {value:.4g}")


if __name__ == "__main__":
    main()
