"""How a worker process tells its supervisor what it does: JSON lines on an inherited pipe.

This module runs inside the worker, so it imports nothing heavy and never ends the worker.

Kinds that the supervisor understands: "step" (step, step_s, parts: seconds of it by stage), "phase"
(name, limit_s: something longer than a step begins, which may take that long; the next step or
phase ends it), "error" (message: why this rank will exit), "preempted" (step: saved after SIGTERM,
exits 0). Every event counts as progress. "alive" is the beat.
"""

import atexit
import json
import os
import threading
import time
from typing import Any, Literal

EVENTS_FD = "MOELSTROM_EVENTS_FD"
"""Environment variable that holds the file descriptor of the pipe."""
BEAT_INTERVAL_S = 0.5
EXIT = "exit"
"""The phase of an ending interpreter, which runs no threads any more."""
EXIT_LIMIT_S = 60.0
Stage = Literal["data", "compute", "wait", "update", "save", "evaluate", "load", "compile", "idle"]
"""What a rank does; `wait` is inside a collective."""


class EventWriter:
    """Writes events from any thread; without a pipe every call does nothing."""

    def __init__(self, fd: int | None) -> None:
        """Take ownership of the write end `fd` and start the liveness beat."""
        self._fd = fd
        self._lock = threading.Lock()
        self._stage: tuple[Stage, int | None, float] = ("idle", None, time.monotonic())
        if fd is not None:
            threading.Thread(target=self._beat, args=(fd,), name="event-beat", daemon=True).start()
            atexit.register(self.emit, "phase", name=EXIT, limit_s=EXIT_LIMIT_S)

    @classmethod
    def from_env(cls) -> "EventWriter":
        """The writer of this process; a worker calls this once, as early as it can."""
        value = os.environ.pop(EVENTS_FD, None)
        if value is None:
            return cls(None)
        fd = int(value)
        os.set_inheritable(fd, False)
        return cls(fd)

    @property
    def connected(self) -> bool:
        """Whether a supervisor reads the events."""
        return self._fd is not None

    def stage(self, name: Stage, step: int | None = None) -> None:
        """Note what this rank does now, for the next beat; writes nothing."""
        self._stage = (name, step, time.monotonic())

    def emit(self, kind: str, **fields: Any) -> None:
        """Send one event with the present UNIX time; `fields` must be JSON values."""
        if self._fd is None:
            return
        line = json.dumps({"kind": kind, "time": time.time(), **fields}) + "\n"
        self._write(line.encode())

    def _beat(self, fd: int) -> None:
        while self._fd == fd:
            name, step, since = self._stage
            seconds = round(time.monotonic() - since, 3)
            self.emit("alive", stage=name, step=step, stage_s=seconds)
            time.sleep(BEAT_INTERVAL_S)

    def _write(self, data: bytes) -> None:
        with self._lock:
            while data and self._fd is not None:
                try:
                    data = data[os.write(self._fd, data) :]
                except OSError:
                    # The reader is gone; the worker's own end is decided elsewhere.
                    self._fd = None
