"""Where one rank's records go, and how its supervisor hears what it does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

from ...cluster.events import EventWriter, Stage
from ...moe.stages import CLOCK
from .log import RunLog
from .records import NoteRecord, Record, to_json

PHASE_FACTOR, PHASE_FLOOR_S = 10.0, 30.0
"""How long a phase may take, in times of the longest one so far, and at least."""


class Channel:
    """The log on rank 0, whose listeners tell its supervisor; elsewhere the supervisor alone."""

    def __init__(self, events: EventWriter, log: RunLog | None, progress_timeout_s: float) -> None:
        """`log` is rank 0's; `progress_timeout_s` is how long anything may take unheard."""
        self.events, self.log = events, log
        self._timeout_s = progress_timeout_s
        self._longest: dict[str, float] = {}

    def record(self, record: Record) -> None:
        """Log what rank 0 alone has to tell."""
        if self.log:
            self.log(record)

    def note(self, text: str) -> None:
        """Log a sentence of rank 0."""
        self.record(NoteRecord(message=text))

    def tell(self, record: Record) -> None:
        """Log it on rank 0, whose supervisor hears it too; tell the other ranks'."""
        if self.log:
            self.log(record)
        else:
            self.events.emit(**to_json(record))

    def stage(self, name: str, step: int | None) -> None:
        """What this rank does from now on."""
        self.events.stage(cast(Stage, name), step)

    @contextmanager
    def phase(self, name: Literal["load", "evaluate", "save"]) -> Iterator[None]:
        """Something that takes longer than a step; the first may compile, and may take as long as
        anything may without progress."""
        longest = self._longest.get(name)
        limit = self._timeout_s
        if longest is not None and name == "evaluate":
            limit = max(PHASE_FLOOR_S, PHASE_FACTOR * longest)
        self.events.emit("phase", name=name, limit_s=limit)
        began = time.perf_counter()
        with CLOCK.stage(name):
            yield
        self._longest[name] = max(longest or 0.0, time.perf_counter() - began)
        self.events.emit("phase", name="train", limit_s=0)

    def close(self) -> None:
        """Flush and close the log."""
        if self.log:
            self.log.close()
