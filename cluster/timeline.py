"""The story of a run's faults and restarts, with times."""

import json
import time
from pathlib import Path
from typing import Any

from .spec import Event, OnEvent

FILE_NAME = "supervisor.jsonl"


class Timeline:
    """Records phases: `started`, then per fault `fault` (when it happened), `detected`, `killed`,
    `regrouped` (all processes started again), `resumed` (first step after it), last `ended`. Before
    `regrouped` stands `scaled` (ranks, before) where the number of ranks changes, and `preempted`
    (step) where they saved and left. `straggler` (rank, node, step, part, factor, own_s, peers_s:
    medians of its and its peers' own work) stands beside the others.

    Each is an event {"kind": "timeline", "phase", "time", "restart", "seconds" (since the phase
    before), "since_fault_s" (from a fault until work resumed), and its own fields}, given to
    `on_event` and appended to `<log_dir>/supervisor.jsonl`.
    """

    def __init__(self, on_event: OnEvent, log_dir: Path | None) -> None:
        """Start the clock; makes `log_dir`."""
        self._on_event = on_event
        self._path = None if log_dir is None else log_dir / FILE_NAME
        self._events: list[Event] = []
        self._previous = time.time()
        self._fault: float | None = None
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)

    @property
    def events(self) -> tuple[Event, ...]:
        """All phases so far."""
        return tuple(self._events)

    def record(
        self,
        phase: str,
        restart: int,
        *,
        at: float | None = None,
        rank: int | None = None,
        **fields: Any,
    ) -> None:
        """Add a phase that happened now, or at the UNIX time `at`."""
        moment = time.time() if at is None else at
        if phase == "fault":
            self._fault = moment
        event: Event = {"kind": "timeline", "phase": phase, "time": moment, "restart": restart}
        event["seconds"] = round(moment - self._previous, 3)
        if self._fault is not None:
            event["since_fault_s"] = round(moment - self._fault, 3)
        event.update(fields if rank is None else {"rank": rank, **fields})
        if phase != "straggler":
            self._previous = moment
        if phase == "resumed":
            self._fault = None
        self._add(event, rank)

    def _add(self, event: Event, rank: int | None) -> None:
        self._events.append(event)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(event) + "\n")
        self._on_event(rank, event)
