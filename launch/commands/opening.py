"""A checkpoint that a command is given."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...moe.state.source import Source


def open_checkpoint(path: Path, model: Path | None = None) -> "Source":
    """A checkpoint of any known format; of a folder of ours, the newest complete one."""
    # Imported here: they bring torch, which no `--help` needs.
    from ...moe.checkpoint.foreign import open_source
    from ...moe.checkpoint.foreign.wanted import read_config
    from ...moe.checkpoint.reader import latest

    return open_source(latest(path) or path, read_config(model) if model else None)
