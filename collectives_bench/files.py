"""Files that anybody may have written: regular ones of a bounded size, and JSON of a bounded depth.

A FIFO would hang its reader, a device never end, and a few kilobytes of brackets exhaust the stack.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from .. import UserError

LARGEST = 2**30
"""Bytes of a file: a sweep over thousands of ranks leaves some hundred MB."""
DEEPEST = 64
"""Levels of nested JSON: reports have nine."""


def read_bytes(path: Path, where: str, fix: str) -> bytes:
    """The content of a regular file; UserError as `where: what is wrong; fix`."""
    try:
        # Before it is opened: to open a device may already do something.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{where}: is no regular file; {fix}")
        # Without waiting, should a FIFO have taken its place.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST:
                raise UserError(f"{where}: has {size:,} bytes, above {LARGEST:,}; {fix}")
            return file.read(LARGEST)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}; {fix}") from None
    except ValueError as error:
        # A path with a zero in it.
        raise UserError(f"{where}: {error}; {fix}") from None


def parse_json(text: str | bytes) -> Any:
    """JSON whose strings can be written again; ValueError says what is wrong with it."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    level = [found]
    for _ in range(DEEPEST):
        level = [part for value in level for part in _parts(value)]
        if not level:
            return found
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, str) and not value.isascii():
        # Half of a surrogate pair ("\ud800") is no text: UnicodeEncodeError is a ValueError.
        value.encode()
    return value if isinstance(value, list) else []
