"""The command line: one file per command, imported only when the command is called.

The command ``inspect`` is the click command ``command`` of ``inspect.py``; a name in ``_HELP`` is all it
takes to add one.
"""

from __future__ import annotations

import codecs
import importlib
import io
import os
import sys
from typing import Any, NoReturn

import click

from edgeopt import __version__
from edgeopt.errors import EdgeoptError, UserError, nearest

COMMANDS = {
    "compile": "Turn a model into the best artifact for a device, and judge it",
    "optimize": "Simplify and fuse a model exactly, for any runtime",
    "run": "Compile and judge all models and devices of a recipe",
    "eval": "Measure an artifact's or model's accuracy",
    "bench": "Measure or predict latency and memory",
    "inspect": "Show a model's layers and what they cost",
    "diff": "Show where two models or artifacts differ",
    "explain": "Show what each pass did, and why a rule did not fire",
    "bisect": "Find the rewrite, or the layer, at which a model goes wrong",
    "devices": "List, show and check device profiles",
    "passes": "List and show passes",
    "emulator": "Set up the emulator of ARM boards",
    "cache": "Show or clear the store of steps",
}
"""Every command and its one line of help; the module of the same name holds the rest."""


ELSEWHERE = {
    "simplify": "optimize",
    "benchmark": "bench",
    "profile": "bench",
    "evaluate": "eval",
    "quantize": "compile",
    "convert": "compile",
    "export": "compile",
}
"""What the commands are called in other tools."""


class LazyGroup(click.Group):
    """A group whose commands are imported when called, so that ``--help`` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Lists the commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Imports the command's module and returns its command.

        Raises:
            UserError: There is no such command.
        """
        if cmd_name not in COMMANDS:
            raise UserError(
                f"there is no command {cmd_name!r}",
                nearest=[ELSEWHERE[cmd_name]] if cmd_name in ELSEWHERE else nearest(cmd_name, COMMANDS),
                hint="edgeopt --help",
            )
        module = importlib.import_module(f"edgeopt.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands' help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="edgeopt")
def cli() -> None:
    """Ship trained models to ARM edge devices: smaller, faster, proven within their budgets."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its code: one sentence for every error, no traceback."""
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")
    sys.exit(call(arguments))


def call(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    try:
        result: Any = cli.main(arguments, standalone_mode=False)
        return int(result or 0)
    except EdgeoptError as error:
        fail(str(error))
        return error.exit_code
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        fail(error.format_message())
        return 2
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except MemoryError:
        fail("out of memory")
        return 3
    except OSError as error:
        place = f"\n  {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{place}")
        return 2
    except Exception as error:
        if _by_interrupt(error):
            return _interrupted()
        if os.environ.get("EDGEOPT_DEBUG"):
            raise
        fail(
            f"internal error: {type(error).__name__}: {error}\n"
            "  try: run again with EDGEOPT_DEBUG=1 for the traceback, and report it"
        )
        return 3


def _interrupted() -> int:
    fail("interrupted; nothing was left half-written")
    return 130


def _by_interrupt(error: BaseException | None) -> bool:
    """Whether an interrupt stands behind an error, as when it strikes while a compiled module is imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


_SPELLINGS = {"µ": "u", "≤": "<=", "≥": ">=", "±": "+-", "→": "->", "×": "x"}


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Writes characters that the terminal's encoding lacks in those that it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_SPELLINGS.get(letter, "?") for letter in text), error.end


def fail(text: str) -> None:
    """Prints an error on stderr, red on a terminal."""
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(text, err=True)
