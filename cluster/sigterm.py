"""SIGTERM of the supervisor's process: pre-emption while workers run, else the end."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Sigterm:
    """What came. The second one always ends the process, after everything is killed."""

    def __init__(self) -> None:
        """Nothing came."""
        self.asked = False
        self.patient = False
        """Whether somebody looks at `asked`; else the first one ends the process, too."""
        self.over = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        first, self.asked = not self.asked, True
        if not (first and self.patient):
            self.end()

    def end(self) -> NoReturn:
        """Leave the `with` block; the process then exits with 143."""
        # Ray's waits pass KeyboardInterrupt on, but turn any SystemExit into SystemExit(1).
        self.over = True
        raise KeyboardInterrupt


@contextmanager
def sigterm_taken() -> Iterator[Sigterm]:
    """Take SIGTERM; SystemExit(143) once it has ended the block. Other threads than the main one
    get no signals."""
    taken = Sigterm()
    if threading.current_thread() is not threading.main_thread():
        yield taken
        return
    previous = signal.signal(signal.SIGTERM, taken.take)
    try:
        yield taken
    except KeyboardInterrupt:
        if taken.over:
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
