"""What an agent's refusal means to a user: the sentence, and what to do on the board."""

from __future__ import annotations

from edgeopt.errors import EdgeoptError, RuntimeFailure
from edgeopt.runners.link import Refused


def refusal(refused: Refused, address: str) -> EdgeoptError:
    """Turns a refusal into a user's error.

    Args:
        refused: What the agent said.
        address: The board's, as given to ``--on``.
    """
    details = refused.details
    if refused.kind == "runtime-missing":
        return _missing(refused, address)
    if refused.kind == "disk":
        return RuntimeFailure(refused.message, hint=f"free some, or name another: {address}?folder=/path")
    if refused.kind == "memory":
        hint = "end what else runs there, or take a smaller model" if details else None
        return RuntimeFailure(refused.message or "the board is out of memory", hint=hint)
    if refused.kind == "open":
        return _cannot_load(refused, address)
    if refused.kind == "folder":
        return RuntimeFailure(refused.message, hint=f"name one: {address}?folder=/path")
    return RuntimeFailure(f"{address} fails: {refused.message}")


def _cannot_load(refused: Refused, address: str) -> RuntimeFailure:
    details = refused.details
    has = f"{details['runtime']} {details['version']}".strip()
    made_for = details.get("made_for")
    return RuntimeFailure(
        f"the board's {has} cannot load the model: {refused.message}",
        where=address,
        hint=f"it was compiled for {made_for}: compile it for a device that carries {has}"
        if made_for and made_for != details["version"]
        else None,
    )


def _missing(refused: Refused, address: str) -> RuntimeFailure:
    details = refused.details
    python = details["python"]
    version = tuple(details.get("version", (3, 0)))
    names = {"tflite": "ai-edge-litert" if version >= (3, 10) else "tflite-runtime"}
    package = names.get(details["family"], details["family"])
    install = f"{python} -m pip install {package}"
    if details.get("managed"):
        install = (
            f"python3 -m venv ~/edgeopt && ~/edgeopt/bin/pip install {package}, "
            f"then --on '{address}?python=~/edgeopt/bin/python'"
        )
    what = f"cannot be loaded: {refused.message}" if details["broken"] else f"is not installed for {python}"
    return RuntimeFailure(f"{package} {what}", where=address, hint=f"on the board: {install}")
