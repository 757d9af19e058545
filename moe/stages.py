"""Where a training step's time goes, by this process's host clock.

On the CPU a collective blocks the host, so `wait` is the time spent in collectives. On a GPU the
host only queues work: there `compute` is the time to queue it, and `wait` the time until the device
has finished it, collectives included.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch


class StageClock:
    """Seconds in each stage; a stage inside another takes its time from the outer one.

    `listener` hears of every change. One thread at a time may change the stage: the training
    thread, or autograd's while that one waits for it.
    """

    def __init__(self) -> None:
        self.listener: Callable[[str], None] | None = None
        self.current = "idle"
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def enter(self, stage: str) -> str:
        """Begin `stage`; returns the one that it ends."""
        now, previous = time.perf_counter(), self.current
        self._seconds[previous] = self._seconds.get(previous, 0.0) + now - self._since
        self.current, self._since = stage, now
        if self.listener:
            self.listener(stage)
        return previous

    def stage(self, name: str) -> "Stage":
        """A context: be in `name`, then in the stage before it again."""
        return Stage(self, name)

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        self.enter(self.current)
        seconds, self._seconds = self._seconds, {}
        return seconds


class Stage:
    """One stay in a stage: a class, which costs a third of a generator's context."""

    def __init__(self, clock: StageClock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._previous = self._clock.enter(self._name)

    def __exit__(self, *error: object) -> None:
        self._clock.enter(self._previous)


CLOCK = StageClock()
"""The clock of this process, which trains one model."""


def waiting() -> "Stage | nullcontext[None]":
    """The stage of a collective or of a wait for the device; inside a compiled block nothing."""
    return nullcontext() if torch.compiler.is_compiling() else CLOCK.stage("wait")
