"""Runs a group of workers to its end: watches, finds the fault, kills, starts again."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .backend import Kind, SeatLost
from .config import ClusterConfig
from .events import Milestone, Spawned, Step, Waiting, read, wire
from .faults import Fault, Weight, first_cause, leave_fault, placement_fault
from .group import StartError, WorkerGroup
from .kinds import CLUSTERS
from .pool import Pool
from .sigterm import Sigterm, sigterm_taken
from .spec import USER_ERROR_EXIT, Event, OnEvent, Outcome, WorkerSpec
from .stragglers import Straggler, Stragglers
from .timeline import Timeline

GRACE_S = 0.5
"""How long to wait for a better explanation than a plain exit: peers of a lost rank exit too."""
POLL_S = 1.0


def run_group(
    spec: WorkerSpec,
    config: ClusterConfig,
    *,
    on_event: OnEvent,
    log_dir: Path | None = None,
) -> Outcome:
    """Run `spec` on the cluster of `config` until all ranks exit 0 or no restart is left.

    A rank fails when its process exits with another code, its seat or node dies, it gives no
    sign of life for `heartbeat_timeout_s` (counted from its first event), or it hangs (see
    `ClusterConfig`). Then all ranks are killed and started again, on the places that are left and
    on new ones for the lost; with `elastic` perhaps on fewer, and on more when there is room again.
    Exit code 2 ends the run; code 3 restarts it without counting. On SIGTERM the workers get
    SIGTERM: if all then exit 0 the outcome is `preempted`.

    `on_event(rank, event)` gets the worker's own events and, as JSON objects, those of `events`
    that are not a worker's (with rank None: `Waiting`). `log_dir` receives `rank-N.log` on the
    rank's node and `supervisor.jsonl` here.

    Raises UserError when the cluster cannot be joined or has no room; KeyboardInterrupt, or
    SystemExit(143) on SIGTERM where the workers did not save, after everything is killed.
    """
    folder = None if log_dir is None else log_dir.resolve()
    timeline = Timeline(on_event, folder)
    kind: Kind = CLUSTERS[config.launcher]

    def on_wait(message: str) -> None:
        on_event(None, wire(Waiting(time.time(), message)))

    with (
        kind.open(config, spec.world_size + config.spare_workers) as backend,
        sigterm_taken() as sigterm,
        closing(Pool(backend, usable_sizes(spec, config), config, on_wait)) as pool,
    ):
        return _Supervisor(spec, config, on_event, folder, timeline, pool, sigterm).run()


def usable_sizes(spec: WorkerSpec, config: ClusterConfig) -> tuple[int, ...]:
    """The group's sizes that the config allows, descending."""
    if not config.elastic:
        return (spec.world_size,)
    least = min(config.min_workers, spec.world_size)
    return tuple(size for size in spec.world_sizes if size >= least)


class _Supervisor:
    def __init__(
        self,
        spec: WorkerSpec,
        config: ClusterConfig,
        on_event: OnEvent,
        log_dir: Path | None,
        timeline: Timeline,
        pool: Pool,
        sigterm: Sigterm,
    ) -> None:
        self._spec, self._config = spec, config
        self._user_on_event = on_event
        self._log_dir = log_dir
        self._timeline = timeline
        self._pool, self._sigterm = pool, sigterm
        self._restart = 0
        self._resuming = False
        self._size = 0
        self._step: int | None = None
        self._faults: deque[float] = deque()
        self._stragglers = Stragglers(0, config.straggler_factor)
        self._nodes: dict[int, str] = {}

    def run(self) -> Outcome:
        while True:
            fault, left = self._attempt()
            end = self._after_fault(fault) if fault else self._after_exit(left)
            if end is not None:
                return end
            self._restart += 1

    def _after_exit(self, left: bool) -> Outcome | None:
        """The end, unless the ranks left to be started again on other places."""
        if not left:
            return self._outcome(0, "all workers finished")
        self._record("preempted", step=self._step)
        # Nobody asked the run to end: it saved to go on with the ranks that there is room for now.
        if self._config.elastic and not self._sigterm.asked:
            return None
        saved = "" if self._step is None else f" after step {self._step}"
        return self._outcome(
            0, f"pre-empted{saved}, and saved; the same command goes on from there", preempted=True
        )

    def _after_fault(self, fault: Fault) -> Outcome | None:
        """The end, unless a restart is left."""
        if self._sigterm.asked:
            self._sigterm.end()
        # A mistake in the config fails alike at every start.
        if fault.weight == Weight.USER_ERROR:
            return self._outcome(USER_ERROR_EXIT, fault.message or fault.reason)
        # The run asked for it, and bounds it by itself: no fault of the machines.
        if fault.weight == Weight.ROLLBACK:
            return None
        now, window = time.monotonic(), self._config.restart_window_s
        while window and self._faults and now - self._faults[0] > window:
            self._faults.popleft()
        if len(self._faults) >= self._config.max_restarts:
            return self._outcome(fault.exit_code, self._given_up(fault))
        self._faults.append(now)
        return None

    def _attempt(self) -> tuple[Fault | None, bool]:
        """Run the group once; returns the fault that ended it, and whether all ranks saved and
        left because they were told to."""
        fault: Fault | None = None
        left = False
        try:
            self._take_places()
            with self._group() as group:
                fault = self._watch(group)
                left = group.left
        except StartError as error:
            fault = error.fault
            self._record_fault(fault, time.time())
        except SeatLost as error:
            fault = placement_fault(error)
            self._record_fault(fault, time.time())
        if fault is not None:
            self._record("killed")
        return fault, fault is None and left

    @contextmanager
    def _group(self) -> Iterator[WorkerGroup]:
        """All ranks, started; killed afterwards."""
        group = WorkerGroup(
            self._spec,
            self._config,
            self._pool.backend,
            self._pool.seats[: self._size],
            has_gpus=self._pool.has_gpus,
            restart=self._restart,
            on_event=self._on_event,
            log_dir=self._log_dir,
        )
        try:
            group.start()
            self._sigterm.patient = True
            self._record("regrouped" if self._restart else "started")
            self._resuming = self._restart > 0
            yield group
        finally:
            self._sigterm.patient = False
            # Seats that could not be ended are not used again: what they hold may still write.
            self._pool.lose(group.stop())

    def _take_places(self) -> None:
        before = self._size
        self._pool.fill(before)
        self._size = self._pool.size
        self._stragglers = Stragglers(self._size, self._config.straggler_factor)
        if before not in (0, self._size):
            self._record("scaled", ranks=self._size, before=before)

    def _watch(self, group: WorkerGroup) -> Fault | None:
        leave_by: float | None = None
        while not group.finished:
            faults = group.poll(POLL_S)
            # Silence counts only where nothing was said: a rank that died explains why others wait.
            overdue = None if faults else group.overdue() or self._late_to_leave(group, leave_by)
            if overdue is not None:
                faults = [overdue]
            if faults:
                detected = time.time()
                fault = self._first_cause(group, faults)
                self._record_fault(fault, detected)
                return fault
            if leave_by is None and self._should_leave(group):
                leave_by = time.monotonic() + self._config.preempt_grace_s
                group.terminate()
        self._step = group.step
        return None

    def _should_leave(self, group: WorkerGroup) -> bool:
        """On SIGTERM, and when a larger group could run."""
        if self._sigterm.asked:
            return True
        # Only between steps that are being done: a group that still loads has nothing to save.
        self._pool.extend()
        return self._pool.size > self._size and group.stepping

    def _late_to_leave(self, group: WorkerGroup, leave_by: float | None) -> Fault | None:
        if leave_by is None or time.monotonic() < leave_by:
            return None
        return leave_fault(group.last_rank, self._config.preempt_grace_s)

    def _first_cause(self, group: WorkerGroup, faults: list[Fault]) -> Fault:
        # One rank's end breaks its peers' collectives within milliseconds; the first to be heard of
        # is often not the cause. Wait a moment for a rank that says more than that it ended.
        deadline = time.monotonic() + GRACE_S
        while first_cause(faults).weight == Weight.EXITED and not group.finished:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            faults = faults + group.poll(left)
        return first_cause(faults)

    def _on_event(self, rank: int | None, event: Event) -> None:
        known = read(event)
        if self._resuming and isinstance(known, Step):
            self._resuming = False
            self._record("resumed", rank=rank, step=known.step)
        if isinstance(known, Spawned) and rank is not None:
            self._nodes[rank] = known.node
        self._user_on_event(rank, event)
        if rank is not None and isinstance(known, Step):
            for straggler in self._stragglers.take(rank, known):
                self._record_straggler(straggler, known.step)

    def _record(self, phase: str, **fields: Any) -> None:
        self._timeline.record(Milestone(phase, self._restart, **fields))

    def _record_fault(self, fault: Fault, detected: float) -> None:
        self._record("fault", time=fault.time, rank=fault.rank, reason=fault.reason)
        self._record("detected", time=detected, rank=fault.rank)

    def _record_straggler(self, found: Straggler, step: int | None) -> None:
        self._record(
            "straggler",
            rank=found.rank,
            step=step,
            node=self._nodes.get(found.rank),
            part=found.part,
            factor=round(found.factor, 2),
            own_s=round(found.own_s, 4),
            peers_s=round(found.peers_s, 4),
        )

    def _given_up(self, fault: Fault) -> str:
        window = self._config.restart_window_s
        when = f" in {window:g} s" if window else ""
        return f"{fault.reason}; restarts used: {len(self._faults)}{when} (cluster.max_restarts)"

    def _outcome(self, exit_code: int, message: str, preempted: bool = False) -> Outcome:
        self._record("ended", exit_code=exit_code, message=message)
        return Outcome(exit_code, self._restart, message, self._timeline.events, preempted)
