"""What ``edgeopt bench --on emulator`` does: counts instructions, and never speaks of time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.cli import vectors

if TYPE_CHECKING:
    from rich.table import Table

    from edgeopt.runners.emulator import Emulator
    from edgeopt.runners.emulator.counts import Counts
    from edgeopt.runners.emulator.prefixes import Prefix

SHOWN = 8
"""Layers shown on the screen, those with the most instructions; ``--json`` has all."""


def count(options: dict[str, Any], runner: Emulator) -> dict[str, Any]:
    """Counts the instructions of a model, and of one to compare with, on an emulated board.

    Args:
        options: The command's.
        runner: The emulator.
    """
    from edgeopt.cli.display import Terminal
    from edgeopt.cli.tables import parse_shapes
    from edgeopt.data import SeededSamples
    from edgeopt.errors import UserError

    for name in ("runs",):
        if options[name]:
            raise UserError(f"--{name} has no effect with the emulator, which times nothing")
    threads, shapes = options["threads"], parse_shapes(options["shapes"])
    named = {key: options[key] for key in ("model", "against") if options[key]}
    runner.take(named["model"], options["device"])
    counts = runner.counts_instructions
    if counts:
        runner.count_from_now()
    opened = {key: runner.open(path, threads=threads) for key, path in named.items()}
    parts = list(opened["model"])
    if any(list(sessions) != parts for sessions in opened.values()):
        raise UserError("the two have different parts and cannot be compared", where=", ".join(parts))
    notes: list[str] = []
    body: dict[str, Any] = {"where": runner.where, "how": "emulated", "instructions": {}, "ratio": {}}
    body["golden"] = {key: vectors.check(Path(path), opened[key], notes) for key, path in named.items()}
    if not counts:
        notes.append("no instructions were counted: `edgeopt emulator setup` says what is missing")
    for part in parts if counts else ():
        first = opened["model"][part]
        own = {spec.name for spec in first.inputs}
        given = {name: shape for name, shape in shapes.items() if name in own or len(parts) == 1}
        samples = SeededSamples(first.inputs, 1, options["seed"], given)
        feeds = next(samples.feeds())
        conditions = {
            "threads": threads,
            "batch": 1,
            "shapes": {key: list(shape) for key, shape in samples.shapes.items()},
        }
        for key, sessions in opened.items():
            found = runner.count(sessions[part], feeds)
            evidence = runner.evidence(found, sessions[part], conditions).to_json()
            if options["layers"]:
                layers = runner.layers(sessions[part], feeds, Terminal().show_progress)
                evidence["detail"] |= _layers(layers)
            body["instructions"].setdefault(key, {})[part] = evidence
        if len(opened) == 2:
            two = [body["instructions"][key][part]["value"] for key in ("model", "against")]
            body["ratio"][part] = two[0] / two[1]
    if not body["ratio"]:
        del body["ratio"]
    body["conditions"] = runner.conditions()
    body["notes"] = [*notes, *runner.notes]
    body["_named"] = named
    return body


def _layers(found: list[tuple[Prefix, Counts]]) -> dict[str, Any]:
    """Counts by layer and by class of kernels, marked approximate."""
    layers = [
        {"layer": prefix.layer, "kernel": prefix.kernel, "instructions": counts.total, **counts.detail()}
        for prefix, counts in found
    ]
    kernels: dict[str, Counts] = {}
    for prefix, counts in found:
        known = kernels.get(prefix.kernel)
        kernels[prefix.kernel] = counts if known is None else known.plus(counts)
    ordered = sorted(kernels.items(), key=lambda item: -item[1].total)
    by_kernel = {name: {"instructions": counts.total, **counts.detail()} for name, counts in ordered}
    return {"layers": layers, "by_kernel": by_kernel, "layers_are": "approximate: differences of prefixes"}


def show(body: dict[str, Any]) -> None:
    """Prints counts as a table."""
    from rich.table import Table

    from edgeopt import units
    from edgeopt.cli.display import console
    from edgeopt.runners.emulator.counts import CLASSES

    out = console()
    core = body["conditions"]
    out.print(f"emulated for {body['where']} ({core['emulator']}, {core['core']}); no latency", style="bold")
    figures = [
        (key, part, found) for key, parts in body["instructions"].items() for part, found in parts.items()
    ]
    if figures:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("per inference", overflow="fold")
        several = any(len(parts) > 1 for parts in body["instructions"].values())
        for key, part, _ in figures:
            name = Path(body["_named"][key]).name
            table.add_column(f"{name} {part}" if several else name, justify="right", overflow="fold")
        table.add_row("instructions", *(units.format_count(found["value"]) for *_, found in figures))
        for name, words in CLASSES.items():
            counted = [found["detail"]["by_class"].get(name, 0) for *_, found in figures]
            if any(counted):
                table.add_row(f"  {words}", *(units.format_count(value) for value in counted))
        for name, words in (("bytes_read", "bytes read"), ("bytes_written", "bytes written")):
            if all(name in found["detail"].get("memory", {}) for *_, found in figures):
                sizes = (units.format_size(found["detail"]["memory"][name]) for *_, found in figures)
                table.add_row(words, *sizes)
        levels = sorted({level for *_, found in figures for level in found["detail"].get("cache_misses", {})})
        for level in levels:
            row = [units.format_count(found["detail"]["cache_misses"].get(level, 0)) for *_, found in figures]
            table.add_row(f"{level.upper()} misses (modelled)", *row)
        out.print(table)
    for key, part, found in figures:
        if "layers" in found["detail"]:
            label = " ".join([Path(body["_named"][key]).name, *([part] if several else [])])
            out.print(f"layers of {label}, approximate: differences of prefixes", style="bold")
            out.print(_layer_table(found["detail"]))
    for part, ratio in body.get("ratio", {}).items():
        label = f"{part}: " if len(body["ratio"]) > 1 else ""
        out.print(f"{label}{ratio:.3f} of the instructions, which says nothing of the time by itself")
    for line in vectors.lines(body["golden"], body["_named"]):
        out.print(line)
    stderr = console(stderr=True)
    for note in body["notes"]:
        stderr.print(note, style="yellow")


def _layer_table(detail: dict[str, Any]) -> Table:
    """Classes of kernels, then the layers with the most instructions."""
    from rich.table import Table

    from edgeopt import units

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "instructions", "read", "written", "L1 misses", "last misses"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")

    def add(label: str, found: dict[str, Any]) -> None:
        memory, misses = found.get("memory", {}), list(found.get("cache_misses", {}).values())
        cells = [units.format_count(found["instructions"])]
        cells += [
            units.format_size(memory[key]) if key in memory else "" for key in ("bytes_read", "bytes_written")
        ]
        cells += [units.format_count(misses[0]), units.format_count(misses[-1])] if misses else ["", ""]
        table.add_row(label, *cells)

    for name, found in detail["by_kernel"].items():
        add(name, found)
    numbered = list(enumerate(detail["layers"], start=1))
    for number, found in sorted(numbered, key=lambda layer: -layer[1]["instructions"])[:SHOWN]:
        add(f"  layer {number}: {found['kernel']}", found)
    return table
