"""Leaving on SIGTERM: a pre-emption is no fault."""

import signal
import threading
from types import FrameType


class Preemption:
    """Hears SIGTERM while it is entered: the first one only sets `wanted`, so that the run can end
    its step and save; a second one ends the process at once."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> "Preemption":
        self._heard = threading.current_thread() is threading.main_thread()
        if self._heard:
            self._previous = signal.signal(signal.SIGTERM, self._hear)
        return self

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        # The default action also ends a process that is stuck inside a collective.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def __exit__(self, *error: object) -> None:
        if self._heard:
            signal.signal(signal.SIGTERM, self._previous)
