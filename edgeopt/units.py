"""Quantities with units: read from text, written for people.

Inside edgeopt a quantity is a plain float in its base unit: bytes, seconds, hertz, bytes per
second, percentage points, percent, decibels. Units are mandatory in every text a user writes.
"""

from __future__ import annotations

import re

from edgeopt.errors import UserError

SCALES: dict[str, dict[str, float]] = {
    "size": {
        "B": 1,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
    },
    "time": {"s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60, "h": 3600},
    "frequency": {"Hz": 1, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "bandwidth": {"B/s": 1, "MB/s": 1e6, "GB/s": 1e9, "MiB/s": 2**20, "GiB/s": 2**30},
    "points": {"pp": 1},
    "percent": {"%": 1},
    "decibel": {"dB": 1},
}
"""Per kind of quantity the units a user may write and their factor to the base unit."""

_TEXT = re.compile(r"\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([A-Za-zµ%/]*)\s*")


def parse(text: str | float, *kinds: str) -> tuple[float, str]:
    """Reads a quantity such as ``"3 MiB"``.

    Args:
        text: A number with its unit.
        kinds: The kinds (keys of ``SCALES``) that are accepted.

    Returns:
        The value in its base unit, and the kind that the unit belongs to.

    Raises:
        UserError: The text is no number, or its unit is missing or not of these kinds.
    """
    match = _TEXT.fullmatch(str(text))
    accepted = [unit for kind in kinds for unit in SCALES[kind]]
    if match is None:
        raise UserError(f"{text!r} is not a quantity", hint=f"a number and one of {' '.join(accepted)}")
    number, unit = match.groups()
    if not unit:
        raise UserError(f"{text!r} has no unit", hint=f"write for example {number} {accepted[0]}")
    for kind in kinds:
        for known, factor in SCALES[kind].items():
            if unit.lower() == known.lower():
                return float(number) * factor, kind
    raise UserError(f"{text!r} has an unknown unit {unit!r}", hint=f"one of {' '.join(accepted)}")


def parse_one(text: str | float, kind: str) -> float:
    """Reads a quantity of one kind and returns it in its base unit."""
    return parse(text, kind)[0]


def format_size(count: float) -> str:
    """Writes bytes for a person: ``"2.44 MiB"``."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def format_time(seconds: float) -> str:
    """Writes a duration for a person: ``"33.9 ms"``."""
    if abs(seconds) >= 100:
        return f"{seconds / 60:.1f} min"
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    if abs(seconds) >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def number(count: int, one: str, many: str = "") -> str:
    """Writes how many there are of something: ``"1 layer"``, ``"2 layers"``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def format_count(count: float) -> str:
    """Writes a large count for a person: ``"12.3 M"``."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"
