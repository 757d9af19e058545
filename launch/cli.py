"""The `moelstrom` command: its table of commands, and how each of them ends."""

import io
import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, ClassVar

import typer

from .. import UserError, __version__
from ..cluster.spec import SAFE_PATH, USER_ERROR_EXIT
from .lazy import LazyCommand, LazyGroup

INTERRUPTED_EXIT = 130
CONTROL = re.compile("[\0-\t\v-\x1f\x7f-\x9f]")


class Commands(LazyGroup):
    """Every command of `moelstrom`."""

    table: ClassVar[Mapping[str, LazyCommand]] = {
        "train": LazyCommand("train", "Train, or go on from the run's last complete checkpoint."),
        "report": LazyCommand(
            "report",
            "Draw a run (run.png) and summarise it (summary.json, printed), whatever launched it.",
        ),
        "size": LazyCommand(
            "size",
            "Propose model shapes, micro-batch and layout for a budget, and predict what they "
            "cost.",
        ),
        "chaos": LazyCommand(
            "chaos",
            "Train, break it on purpose, and report what each fault cost; 1 if any was not "
            "overcome.",
        ),
        "data": LazyCommand("data", "Training data."),
        "kernels": LazyCommand("kernels", "The Triton kernels."),
        "bench": LazyCommand("bench", "Measure the network and the devices."),
        "ckpt": LazyCommand("ckpt", "Checkpoints."),
    }


app = typer.Typer(
    cls=Commands,
    help="Distributed mixture-of-experts pretraining from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Run the command line, which shows no traceback: 2 and one message for a user's mistake, 1 and
    a file with the trace for a fault of ours."""
    # Every Python below: a pool's processes would look in the current folder before the library.
    os.environ[SAFE_PATH] = "1"
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold bytes that no encoding has.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        _say(str(error))
        sys.exit(USER_ERROR_EXIT)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT)
    except Exception as error:
        from .faults import in_one_line

        _say(in_one_line(error))
        sys.exit(1)


def _say(text: str) -> None:
    # What the user wrote may command the terminal.
    plain = CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
    print(f"error: {plain}", file=sys.stderr)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass
