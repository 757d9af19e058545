"""Opening what a user named."""

import errno
import os
from pathlib import Path
from typing import BinaryIO

from ...moe.checkpoint.plainfile import open_plain


def open_regular(path: Path) -> BinaryIO:
    """The regular file at `path`, or that a link there leads to, for reading.

    Raises OSError, also for a FIFO or device: opening one may hang, and reading it never end.
    """
    try:
        return os.fdopen(open_plain(path, links=True), "rb")
    except ValueError:
        why = "Is a directory" if path.is_dir() else "Not a regular file"
        raise OSError(errno.EINVAL, why, str(path)) from None


def read_regular(path: Path) -> bytes:
    """All of the regular file at `path`. Raises OSError."""
    with open_regular(path) as file:
        return file.read()
