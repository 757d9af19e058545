"""SIGTERM and Ctrl-C of the supervisor's process: pre-emption while workers run, else the end."""

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
        self._last = signal.SIGTERM

    def take(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        first, self.asked = not self.asked, True
        self._last = signal.Signals(number)
        if not (first and self.patient):
            self.end()

    def end(self) -> NoReturn:
        """Leave the `with` block; the process then exits with 143, or Ctrl-C goes on."""
        # Ray's waits pass KeyboardInterrupt on, but turn any SystemExit into SystemExit(1).
        self.over = self._last == signal.SIGTERM
        raise KeyboardInterrupt


@contextmanager
def sigterm_taken() -> Iterator[Sigterm]:
    """Take SIGTERM and SIGINT; SystemExit(143) once the former has ended the block. Other threads
    than the main one get no signals."""
    taken = Sigterm()
    if threading.current_thread() is not threading.main_thread():
        yield taken
        return
    numbers = signal.SIGTERM, signal.SIGINT
    previous = [signal.signal(number, taken.take) for number in numbers]
    try:
        yield taken
    except KeyboardInterrupt:
        if taken.over:
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
