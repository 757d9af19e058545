"""Runs a group of workers to its end: watches, finds the fault, kills, starts again."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from .config import ClusterConfig
from .faults import Fault, Weight, first_cause
from .ray_session import ray_session
from .spec import USER_ERROR_EXIT, Event, OnEvent, Outcome, WorkerSpec
from .timeline import Timeline

if TYPE_CHECKING:
    from .group import WorkerGroup

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
    """Run `spec` under Ray until all ranks exit 0 or no restart is left.

    A rank fails when its process exits with another code, its actor or node dies, it gives no
    sign of life for `heartbeat_timeout_s` (counted from its first event), or it emits nothing but
    beats for `progress_timeout_s`. Then all ranks are killed and started again, except after exit
    code 2. `on_event(rank, event)` gets, besides the worker's own events, the kinds "spawned"
    (pid, node, gpus, restart), "log" (stream, line), "exit" (code, message, stderr), "timeline"
    (see `Timeline`) and, with rank None, "waiting" (message). `log_dir` receives
    `rank-N.log` on the rank's node and `supervisor.jsonl` here.

    Raises UserError when the cluster cannot be joined or has no room; KeyboardInterrupt, or
    SystemExit(143) on SIGTERM, after everything is killed.
    """
    folder = None if log_dir is None else log_dir.resolve()
    timeline = Timeline(on_event, folder)
    with ray_session(config, spec.world_size), _sigterm_exits():
        return _Supervisor(spec, config, on_event, folder, timeline).run()


class _Supervisor:
    def __init__(
        self,
        spec: WorkerSpec,
        config: ClusterConfig,
        on_event: OnEvent,
        log_dir: Path | None,
        timeline: Timeline,
    ) -> None:
        self._spec, self._config = spec, config
        self._user_on_event = on_event
        self._log_dir = log_dir
        self._timeline = timeline
        self._restart = 0
        self._resuming = False

    def run(self) -> Outcome:
        while True:
            fault = self._attempt()
            if fault is None:
                return self._outcome(0, "all workers finished")
            if fault.exit_code == USER_ERROR_EXIT:
                return self._outcome(USER_ERROR_EXIT, fault.message or fault.reason)
            if self._restart == self._config.max_restarts:
                return self._outcome(fault.exit_code, self._given_up(fault))
            self._restart += 1

    def _attempt(self) -> Fault | None:
        """Run the group once; returns what ended it, None when all ranks succeeded."""
        from .group import StartError, WorkerGroup

        group = WorkerGroup(
            self._spec,
            self._config,
            restart=self._restart,
            on_event=self._on_event,
            log_dir=self._log_dir,
        )
        try:
            group.start()
            self._record("regrouped" if self._restart else "started")
            self._resuming = self._restart > 0
            fault = self._watch(group)
        except StartError as error:
            fault = error.fault
            self._record_fault(fault, time.time())
        finally:
            group.stop()
        if fault is not None:
            self._record("killed")
        return fault

    def _watch(self, group: "WorkerGroup") -> Fault | None:
        while not group.finished:
            faults = group.poll(POLL_S)
            overdue = None if faults else group.overdue()
            if overdue is not None:
                faults = [overdue]
            if faults:
                detected = time.time()
                fault = self._first_cause(group, faults)
                self._record_fault(fault, detected)
                return fault
        return None

    def _first_cause(self, group: "WorkerGroup", faults: list[Fault]) -> Fault:
        deadline = time.monotonic() + GRACE_S
        while first_cause(faults).weight == Weight.EXITED and not group.finished:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            faults = faults + group.poll(left)
        return first_cause(faults)

    def _on_event(self, rank: int | None, event: Event) -> None:
        if self._resuming and event["kind"] == "step":
            self._resuming = False
            self._record("resumed", rank=rank, step=event.get("step"))
        self._user_on_event(rank, event)

    def _record(self, phase: str, *, rank: int | None = None, **fields: Any) -> None:
        self._timeline.record(phase, self._restart, rank=rank, **fields)

    def _record_fault(self, fault: Fault, detected: float) -> None:
        self._timeline.record(
            "fault", self._restart, at=fault.time, rank=fault.rank, reason=fault.reason
        )
        self._timeline.record("detected", self._restart, at=detected, rank=fault.rank)

    def _given_up(self, fault: Fault) -> str:
        return f"{fault.reason}; restarts used: {self._restart} (cluster.max_restarts)"

    def _outcome(self, exit_code: int, message: str) -> Outcome:
        self._record("ended", exit_code=exit_code, message=message)
        return Outcome(exit_code, self._restart, message, self._timeline.events)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that the group is killed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    terminated = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Ray's waits pass KeyboardInterrupt on, but turn any SystemExit into SystemExit(1).
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if terminated:
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
