"""How a worker process tells its supervisor what it does, and what that tells its caller: JSON
objects with `kind` and `time`, from the worker as lines on an inherited pipe.

This module runs inside the worker, so it imports nothing heavy and never ends the worker. A program
may send kinds that are not listed here: they are passed on, and count as progress.
"""

import atexit
import json
import os
import threading
import time
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from .spec import Event

EVENTS_FD = "MOELSTROM_EVENTS_FD"
"""Environment variable that holds the file descriptor of the pipe."""
BEAT_INTERVAL_S = 0.5
EXIT = "exit"
"""The phase of an ending interpreter, which runs no threads any more."""
EXIT_LIMIT_S = 60.0
Stage = Literal["data", "compute", "wait", "update", "save", "evaluate", "load", "compile", "idle"]
"""What a rank does; `wait` is inside a collective."""


@dataclass(frozen=True)
class Step:
    """From a worker: it has done a step, and whatever it announced before is over."""

    kind: ClassVar[str] = "step"
    time: float
    """UNIX seconds, as in every kind."""
    step: int | None = None
    """The step's number."""
    step_s: float | None = None
    """How long it took."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of it by stage; empty where the program does not measure them."""


@dataclass(frozen=True)
class Phase:
    """From a worker: something begins that may take longer than a step."""

    kind: ClassVar[str] = "phase"
    time: float
    name: str = ""
    """What; `exit` is the end of the interpreter."""
    limit_s: float = 0.0
    """How long it may take; 0: no longer than a step."""


@dataclass(frozen=True)
class Error:
    """From a worker: it is about to exit with another code than 0."""

    kind: ClassVar[str] = "error"
    time: float
    message: str = ""
    """Why, in the words that the user shall read."""


@dataclass(frozen=True)
class Preempted:
    """From a worker: it has saved because it was told to go, and exits 0."""

    kind: ClassVar[str] = "preempted"
    time: float
    step: int | None = None
    """The step that was saved."""


@dataclass(frozen=True)
class Alive:
    """From a worker, every `BEAT_INTERVAL_S`: a sign of life, and no progress. Not passed on."""

    kind: ClassVar[str] = "alive"
    time: float
    stage: Stage = "idle"
    """What it does."""
    step: int | None = None
    """In which step."""
    stage_s: float = 0.0
    """For how long already."""


@dataclass(frozen=True)
class Spawned:
    """A rank's process was started."""

    kind: ClassVar[str] = "spawned"
    time: float
    pid: int
    """Its id on its node."""
    node: str
    """The node's address."""
    gpus: tuple[str, ...]
    """Indices of the GPUs that it was given there."""
    restart: int
    """How often the group had been started before."""


@dataclass(frozen=True)
class LogLine:
    """A line of a rank's output."""

    kind: ClassVar[str] = "log"
    time: float
    stream: str
    """`stdout` or `stderr`."""
    line: str
    """Without its end; a long one is cut."""


@dataclass(frozen=True)
class Exit:
    """A rank's process has ended; the last event of it."""

    kind: ClassVar[str] = "exit"
    time: float
    code: int
    """Its exit code; negative: the signal that killed it."""
    message: str
    """Its `error` event's message, else its last line on stderr."""
    stderr: tuple[str, ...]
    """Its last lines there."""


@dataclass(frozen=True)
class Waiting:
    """The run waits for something outside it; of no rank."""

    kind: ClassVar[str] = "waiting"
    time: float
    message: str
    """For what."""


@dataclass(frozen=True)
class Milestone:
    """A point of the run's story, as `Timeline` records it. What a phase does not have is None, and
    left out."""

    kind: ClassVar[str] = "timeline"
    phase: str
    """See `Timeline`."""
    restart: int
    """How often the group had been started again."""
    time: float = field(default_factory=time.time)
    seconds: float | None = None
    """Since the milestone before."""
    since_fault_s: float | None = None
    """Since the fault, until work is resumed."""
    rank: int | None = None
    """Whom it is about."""
    step: int | None = None
    """`preempted`, `resumed`, `straggler`: the step that was done."""
    reason: str | None = None
    """`fault`: what happened."""
    ranks: int | None = None
    """`scaled`: how many there are now."""
    before: int | None = None
    """`scaled`: how many there were."""
    node: str | None = None
    """`straggler`: its node's address."""
    part: str | None = None
    """`straggler`: the part of a step that exceeds the peers' most."""
    factor: float | None = None
    """`straggler`: its own work over its peers'."""
    own_s: float | None = None
    """`straggler`: the median of its own work in a step."""
    peers_s: float | None = None
    """`straggler`: that of its peers."""
    exit_code: int | None = None
    """`ended`: the outcome's."""
    message: str | None = None
    """`ended`: the outcome's."""


Known = Step | Phase | Error | Preempted | Alive | Spawned | LogLine | Exit | Waiting | Milestone
_KINDS: dict[str, type[Known]] = {
    kind.kind: kind
    for kind in (Step, Phase, Error, Preempted, Alive, Spawned, LogLine, Exit, Waiting, Milestone)
}


def wire(event: Known) -> Event:
    """The event as a JSON object, without what is None."""
    values = ((entry.name, getattr(event, entry.name)) for entry in fields(event))
    known = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values
        if value is not None
    }
    return {"kind": event.kind, **known}


def read(event: Event) -> Known | None:
    """The event of a JSON object, without fields that are not listed; None for a kind that is the
    program's own."""
    kind = _KINDS.get(event["kind"])
    if kind is None:
        return None
    names = {entry.name for entry in fields(kind)}
    return kind(**{name: value for name, value in event.items() if name in names})


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
