"""What the commands share on a terminal: where tables go, and files refused before the work."""

from pathlib import Path

from rich.console import Console

from .. import UserError

_PIPE_WIDTH = 200


def console() -> Console:
    """Standard output; wide enough for whole tables where that is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=_PIPE_WIDTH)


def check_writable(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written before the work that fills it."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}; give a file to write") from None
