"""Opening what a user names: plain files only, so that no pipe or device is ever waited for."""

import errno
import os
import stat
from pathlib import Path

NOT_PLAIN = "a symlink or not a plain file"


def open_plain(file: Path, links: bool = False) -> int:
    """A descriptor for reading; `links` follows symlinks, such as those of Hugging Face's cache.

    Raises OSError if it is missing, ValueError if it is a pipe, device, folder or (without `links`)
    a symlink.
    """
    _check(file.stat(follow_symlinks=links))
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        handle = os.open(file, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not links:
            raise ValueError(NOT_PLAIN) from None
        raise
    try:
        # Another file may have taken the name since; opened without blocking, it did not wait.
        _check(os.fstat(handle))
    except ValueError:
        os.close(handle)
        raise
    return handle


def read_plain(file: Path, limit: int | None = None, links: bool = False) -> bytes:
    """All of a file, of at most `limit` bytes if given; raises as `open_plain`, and ValueError
    above it."""
    with os.fdopen(open_plain(file, links), "rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        if limit is not None and size > limit:
            raise ValueError(f"{size} bytes, above {limit}: too large to be real")
        parts = []
        while size and (part := opened.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(NOT_PLAIN)
