"""What the commands share on a terminal: where tables and progress go, and files refused before
the work."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .. import UserError

_PIPE_WIDTH = 200


def console() -> Console:
    """Standard output; wide enough for whole tables where that is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=_PIPE_WIDTH)


@contextmanager
def usable(path: str) -> Iterator[None]:
    """Make the system's refusal of a path the user's mistake."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: {reason}; give a folder that this user can write") from None


def check_writable(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written before the work that fills it."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}; give a file to write") from None


def write_json(value: Any, printed: bool, path: Path | None) -> None:
    """What `--json` prints and `--out PATH` writes: the same text."""
    text = json.dumps(value, indent=1)
    if path:
        path.write_text(text + "\n", encoding="utf-8")
    if printed:
        print(text)


def parse_bytes(option: str, text: str) -> int:
    """The number of bytes that an option gives, such as 5GB; UserError names the option."""
    from ..collectives_bench import sizes

    try:
        return sizes.parse_bytes(text)
    except ValueError as error:
        raise UserError(f"{option} {error}") from None


@contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while it is a terminal; call it with bytes done and in all."""
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    off = not console.is_terminal
    with Progress(TextColumn(label), *columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
