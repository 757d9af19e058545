"""One command to a run's folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...moe.checkpoint.lease import HOME, take


@contextmanager
def sole(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a run's folder for as long as its workers may be started; they hold what they write
    themselves. A folder that nothing else was written to does not remain.

    Raises UserError that names who holds it, after `patience_s`.
    """
    fresh = not os.path.lexists(folder)
    lease = take(folder, "run", "output", patience_s)
    try:
        yield
    finally:
        lease.release()
        if fresh and [entry.name for entry in folder.iterdir()] == [HOME]:
            shutil.rmtree(folder, ignore_errors=True)
