"""What is known of processor cores: their extensions and what they compute in a cycle."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from edgeopt import schema
from edgeopt.errors import ProfileError


class Core(schema.Schema):
    """One kind of core.

    Attributes:
        arch: Its architecture.
        isa: The extensions that it has.
        in_order: It issues instructions in order.
        macs: Per element type the multiply-accumulates that it completes in a cycle.
        qemu: QEMU's name for it, where it has one.
    """

    arch: Literal["aarch64", "armv7", "x86_64"]
    isa: list[str]
    in_order: bool = False
    macs: dict[str, float]
    qemu: str | None = None


class Cores(schema.Schema):
    """All known cores, and where the figures come from."""

    version: Literal[1]
    cores: dict[str, Core]
    sources: dict[str, str]


@cache
def known_cores() -> dict[str, Core]:
    """Returns every known core by its name."""
    path = Path(__file__).with_name("cores.yaml")
    return schema.read(path, Cores, ProfileError).cores
