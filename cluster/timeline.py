"""The story of a run's faults and restarts, with times."""

import json
from dataclasses import replace
from pathlib import Path
from time import time

from .events import Milestone, wire
from .spec import Event, OnEvent

FILE_NAME = "supervisor.jsonl"


class Timeline:
    """Records milestones: `started`, then per fault `fault` (when it happened), `detected`,
    `killed`, `regrouped` (all processes started again), `resumed` (first step after it), last
    `ended`. Before `regrouped` stands `scaled` where the number of ranks changes, and `preempted`
    where they saved and left. `straggler` stands beside the others.

    Each goes to `on_event`, with its seconds, and as a line to `<log_dir>/supervisor.jsonl`.
    """

    def __init__(self, on_event: OnEvent, log_dir: Path | None) -> None:
        """Start the clock; makes `log_dir`."""
        self._on_event = on_event
        self._path = None if log_dir is None else log_dir / FILE_NAME
        self._events: list[Event] = []
        self._previous = time()
        self._fault: float | None = None
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)

    @property
    def events(self) -> tuple[Event, ...]:
        """All milestones so far."""
        return tuple(self._events)

    def record(self, milestone: Milestone) -> None:
        """Add one; its seconds are filled in here."""
        moment = milestone.time
        if milestone.phase == "fault":
            self._fault = moment
        timed = replace(milestone, seconds=round(moment - self._previous, 3))
        if self._fault is not None:
            timed = replace(timed, since_fault_s=round(moment - self._fault, 3))
        if milestone.phase != "straggler":
            self._previous = moment
        if milestone.phase == "resumed":
            self._fault = None
        self._add(wire(timed), milestone.rank)

    def _add(self, event: Event, rank: int | None) -> None:
        self._events.append(event)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(event) + "\n")
        self._on_event(rank, event)
