"""What can go wrong with a rank, and which of several faults came first."""

import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from .events import Exit
from .spec import ROLLBACK_EXIT, USER_ERROR_EXIT


class Weight(IntEnum):
    """How surely a fault is a cause: a killed rank makes its peers exit, never the reverse; and two
    exit codes are a rank's own decision."""

    USER_ERROR = 0
    ROLLBACK = 1
    KILLED = 2
    EXITED = 3
    OVERDUE = 4


@dataclass(frozen=True)
class Fault:
    """One rank's failure, or that of a seat without a rank (None); `time` is when it happened
    (UNIX seconds), as well as that is known."""

    rank: int | None
    reason: str
    time: float
    weight: Weight
    exit_code: int = 1
    message: str = ""
    """The worker's last words: its `error` event's message, else its last line on stderr."""


def exit_fault(rank: int, event: Exit) -> Fault | None:
    """The fault in an `exit` event; None for exit code 0."""
    code, message = event.code, event.message
    if code == 0:
        return None
    reason = f"rank {rank} {_exit_text(code)}" + (f": {message}" if message else "")
    return Fault(rank, reason, event.time, _exit_weight(code), code if code > 0 else 1, message)


def seat_fault(rank: int, error: Exception, last_seen: float) -> Fault:
    """The seat or its node died; `last_seen` is when it last answered (UNIX seconds)."""
    reason = f"the seat of rank {rank} was lost: {error}"
    return Fault(rank, reason, last_seen, Weight.KILLED)


def placement_fault(error: Exception) -> Fault:
    """A seat died before it had a rank."""
    return Fault(None, f"a seat was lost: {error}", time.time(), Weight.KILLED)


def silence_fault(rank: int, silent_s: float, limit_s: float) -> Fault:
    """No sign of life for longer than the limit."""
    reason = (
        f"rank {rank} gave no sign of life for {silent_s:.1f} s "
        f"(cluster.heartbeat_timeout_s {limit_s:g})"
    )
    return Fault(rank, reason, time.time() - silent_s, Weight.OVERDUE)


def stall_fault(
    rank: int, step: int | None, idle_s: float, limit_s: float, setting: str, stage: str | None
) -> Fault:
    """Alive, but no event for longer than the limit; `setting` of the cluster's section gave it, or
    the worker's own announcement (`phase`)."""
    place = "before its first step" if step is None else f"after step {step}"
    doing = "" if stage is None else f", in {stage}"
    source = "the announced phase's limit" if setting == "phase" else f"cluster.{setting}"
    reason = (
        f"rank {rank} made no progress for {idle_s:.1f} s {place}{doing} "
        f"({source}: {limit_s:.3g} s)"
    )
    return Fault(rank, reason, time.time() - idle_s, Weight.OVERDUE)


def leave_fault(rank: int, grace_s: float) -> Fault:
    """Still there after SIGTERM."""
    reason = f"rank {rank} was still there {grace_s:g} s after SIGTERM (cluster.preempt_grace_s)"
    return Fault(rank, reason, time.time(), Weight.OVERDUE)


def first_cause(faults: Iterable[Fault]) -> Fault:
    """The fault that explains the others: by weight, then by time."""
    return min(faults, key=lambda fault: (fault.weight, fault.time))


def _exit_text(code: int) -> str:
    if code == ROLLBACK_EXIT:
        return "asks for a roll-back"
    if code > 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


def _exit_weight(code: int) -> Weight:
    if code == USER_ERROR_EXIT:
        return Weight.USER_ERROR
    if code == ROLLBACK_EXIT:
        return Weight.ROLLBACK
    # Communication libraries abort a rank that lost its peer, so SIGABRT proves nothing.
    return Weight.KILLED if code < 0 and code != -signal.SIGABRT else Weight.EXITED
