"""The last word on what nobody foresaw: one line, a file with the trace, and where it helps."""

import os
import platform
import tempfile
import traceback

from .. import __version__


def save_trace(error: BaseException) -> str:
    """Leave the trace in a file that only this user can read; returns its path.

    Neither the command's words nor any variable is in it: they may be secrets.
    """
    handle, path = tempfile.mkstemp(prefix="moelstrom-", suffix=".trace")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"moelstrom {__version__}, Python {platform.python_version()}\n")
        file.writelines(traceback.format_exception(error))
    return path


def in_one_line(error: BaseException) -> str:
    """What to tell a user of an error that is no mistake of theirs."""
    first = next(iter(str(error).strip().splitlines()), "")
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    try:
        where = f"the trace is in {save_trace(error)}; please report it with that file"
    except OSError as refused:
        where = f"its trace could not be saved ({refused.strerror}); please report it"
    return f"{what} (a fault of moelstrom, not yours: {where})"
