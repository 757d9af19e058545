"""Brings a scenario's faults about, one after the other, beside the supervisor that runs a group.

A fault starts when its moment has come and the one before it is over: the run has gone past the
step in which it happened, and what it broke is whole again.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import UserError
from ...cluster.events import Spawned
from ...cluster.spec import Event
from ..train.records import StepRecord, heard
from . import actions, control
from .scenario import AnyFault, Corrupt, DiskFull, Hang, Kill, Nan, NodeLost, Scenario, Slow, Stop

POLL_S = 0.5
MARGIN = 2
"""Steps: the peers of a lost rank may finish the one under way."""


@dataclass(frozen=True)
class Injection:
    """One fault that happened; `time` in UNIX seconds, `step` the last (inside a worker: the
    present) one of rank 0, `until` when what it broke was whole again."""

    index: int
    kind: str
    time: float
    step: int
    until: float
    rank: int | None
    node: str
    detail: str
    restarts: bool


@dataclass
class Seen:
    """What the run's events have told so far."""

    began: float | None = None
    step: int = 0
    pids: dict[int, int] = field(default_factory=dict)
    nodes: dict[int, str] = field(default_factory=dict)
    restart: int = 0
    stepped: int = -1
    """The start (0: the first) whose step was seen last."""


class Injector:
    """Takes the run's events on the supervisor's thread and acts on one of its own."""

    def __init__(
        self, scenario: Scenario, folder: Path, checkpoints: Path, tell: Callable[[str], None]
    ) -> None:
        """`folder` is the control folder (made here); `tell` gets a line for each fault."""
        folder.mkdir(parents=True, exist_ok=True)
        self._scenario, self._folder, self._checkpoints = scenario, folder, checkpoints
        self._tell = tell
        self._seen, self._changed = Seen(), threading.Condition()
        self._closed = False
        self.done: list[Injection] = []
        self.problem: str = ""
        """Why it stopped before the last fault; empty if it did not."""
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def __enter__(self) -> "Injector":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        control.disarm(self._folder)

    def on_event(self, rank: int | None, event: Event) -> None:
        """Take an event of `run_group`."""
        with self._changed:
            self._take(rank, event)
            self._changed.notify_all()

    def _take(self, rank: int | None, event: Event) -> None:
        seen = self._seen
        match heard(event):
            case Spawned(restart=restart, pid=pid, node=node, time=began) if rank is not None:
                if restart != seen.restart:
                    seen.pids, seen.nodes, seen.restart = {}, {}, restart
                seen.pids[rank], seen.nodes[rank] = pid, node
                seen.began = seen.began or began
            case StepRecord(step=step) if rank == 0:
                seen.step, seen.stepped = step, seen.restart

    def _run(self) -> None:
        try:
            for index, fault in enumerate(self._scenario.faults):
                if not self._bring_about(index, fault):
                    return
        except (OSError, UserError) as error:
            self.problem = str(error)
            self._tell(f"chaos  stopped: {error}")

    def _bring_about(self, index: int, fault: AnyFault) -> bool:
        """One fault from its moment to its end; False if the run ended before that."""
        if isinstance(fault, Hang | Nan | Slow):
            done = self._inside(index, fault)
        else:
            done = self._outside(index, fault)
        if done is None:
            return False
        self.done.append(done)
        return self._wait(lambda: self._is_over(done))

    def _inside(self, index: int, fault: Hang | Nan | Slow) -> Injection | None:
        """Offer it to the worker, and wait until that has taken it."""
        if not self._wait(lambda: fault.at_step is not None or self._is_due(fault)):
            return None
        fields = fault.model_dump()
        control.arm(self._folder, index, {**fields, "at_step": fault.at_step or 0})
        self._wait(lambda: control.fired(self._folder, index) is not None)
        found = control.fired(self._folder, index)
        if found is None:
            return None
        self._say(fault, found["step"], f"rank {fault.rank}")
        detail = f"x {fault.factor:g}, {fault.steps} steps" if isinstance(fault, Slow) else ""
        return Injection(
            **self._facts(index, fault, time=found["time"], step=found["step"], detail=detail)
        )

    def _outside(self, index: int, fault: AnyFault) -> Injection | None:
        if not self._wait(lambda: self._is_due(fault) and self._is_ready(fault)):
            return None
        time.sleep(getattr(fault, "delay_s", 0.0))
        facts = self._facts(index, fault, time=time.time(), step=self._seen.step, detail="")
        self._say(fault, facts["step"], facts["node"])
        if isinstance(fault, Corrupt):
            newest = actions.complete_checkpoints(self._checkpoints)[-1]
            facts["detail"] = f"{newest.name}: {actions.flip_bit(newest, fault.file, index)}"
        if isinstance(fault, Kill | Stop | Corrupt):
            self._signal(fault.rank, actions.STOP if isinstance(fault, Stop) else actions.KILL)
        if isinstance(fault, DiskFull):
            self._fill(fault)
        if isinstance(fault, NodeLost):
            self._cut(fault)
        if isinstance(fault, DiskFull | NodeLost):
            facts["until"] = time.time()
        return Injection(**facts)

    def _signal(self, rank: int, number: int) -> None:
        """To the rank's present process; it may be gone by now."""
        with self._changed:
            pid, node = self._seen.pids.get(rank), self._seen.nodes.get(rank)
        if pid is not None and node is not None:
            actions.send(pid, node, number, self._folder)

    def _fill(self, fault: DiskFull) -> None:
        try:
            actions.fill(self._checkpoints)
            self._hold(fault.duration_s)
        finally:
            (self._checkpoints / actions.FILL_NAME).unlink(missing_ok=True)

    def _cut(self, fault: NodeLost) -> None:
        try:
            actions.run_command(self._scenario.cut, fault.node)
            self._hold(fault.duration_s)
        finally:
            actions.run_command(self._scenario.heal, fault.node)

    def _hold(self, seconds: float) -> None:
        """Wait, but not longer than the run."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._closed and time.monotonic() < end:
                self._changed.wait(min(POLL_S, max(0.0, end - time.monotonic())))

    def _facts(self, index: int, fault: AnyFault, **known: Any) -> dict[str, Any]:
        rank = getattr(fault, "rank", None)
        node = getattr(fault, "node", "") or self._seen.nodes.get(rank or 0, "")
        facts = {"index": index, "kind": fault.kind, "rank": rank, "node": node}
        return {**facts, "restarts": fault.restarts, "until": known["time"], **known}

    def _is_due(self, fault: AnyFault) -> bool:
        seen = self._seen
        if seen.began is None or seen.stepped != seen.restart:
            return False
        if fault.at_step is not None:
            return seen.step >= fault.at_step
        return time.time() >= seen.began + (fault.after_s or 0.0)

    def _is_ready(self, fault: AnyFault) -> bool:
        """Whether there is anything to break."""
        if isinstance(fault, NodeLost):
            return fault.node in self._seen.nodes.values()
        if getattr(fault, "rank", 0) not in self._seen.pids:
            return False
        if isinstance(fault, Corrupt):
            return len(actions.complete_checkpoints(self._checkpoints)) >= 2
        return True

    def _is_over(self, done: Injection) -> bool:
        return self._seen.stepped == self._seen.restart and self._seen.step > done.step + MARGIN

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """Wait for a condition; False when the run ended first."""
        with self._changed:
            while not self._closed and not ready():
                self._changed.wait(POLL_S)
            return not self._closed

    def _say(self, fault: AnyFault, step: int, place: str) -> None:
        self._tell(f"chaos  {fault.kind}  step {step}  {place}")
