"""One command to a run's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...moe.checkpoint.lease import take


@contextmanager
def sole(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a run's folder for as long as its workers may be started; they hold what they write
    themselves. Raises UserError that names who holds it, after `patience_s`."""
    lease = take(folder, "run", "output", patience_s)
    try:
        yield
    finally:
        lease.release()
