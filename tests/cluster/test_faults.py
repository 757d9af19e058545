import signal
import time

import pytest

from moelstrom.cluster.events import Exit
from moelstrom.cluster.faults import (
    Fault,
    Weight,
    exit_fault,
    first_cause,
    placement_fault,
    seat_fault,
    silence_fault,
    stall_fault,
)


def exited(rank: int, code: int, at: float) -> Fault:
    fault = exit_fault(rank, Exit(at, code, "last words", ()))
    assert fault is not None
    return fault


def test_exit_zero_is_no_fault() -> None:
    assert exit_fault(0, Exit(1.0, 0, "", ())) is None


def test_a_killed_rank_beats_peers_that_exited_before_it() -> None:
    faults = [exited(0, 1, 1.0), exited(1, -signal.SIGKILL, 1.2), exited(2, -signal.SIGABRT, 0.9)]
    assert first_cause(faults).rank == 1


def test_a_users_mistake_beats_everything() -> None:
    assert first_cause([exited(0, -signal.SIGKILL, 1.0), exited(1, 2, 1.4)]).rank == 1


def test_equals_are_ordered_by_time() -> None:
    assert first_cause([exited(0, 1, 2.0), exited(1, 3, 1.0)]).rank == 1


@pytest.mark.parametrize(
    ("code", "words", "exit_code"),
    [(7, "exited with code 7: last words", 7), (-11, "was killed by SIGSEGV: last words", 1)],
)
def test_reasons_of_exits(code: int, words: str, exit_code: int) -> None:
    fault = exited(3, code, 1.0)
    assert fault.reason == f"rank 3 {words}"
    assert fault.exit_code == exit_code


def test_reasons_name_the_limit() -> None:
    assert "cluster.heartbeat_timeout_s 3" in silence_fault(0, 3.2, 3.0).reason
    reason = stall_fault(0, 4, 10.0, 9.0, "hang_floor_s", "compute").reason
    assert "after step 4, in compute (cluster.hang_floor_s: 9 s)" in reason
    assert (
        "before its first step (the announced" in stall_fault(0, None, 10, 9, "phase", None).reason
    )


def test_a_lost_seat_is_as_sure_a_cause_as_a_signal() -> None:
    fault = seat_fault(2, RuntimeError("its node has died"), 5.0)
    assert (fault.weight, fault.time) == (Weight.KILLED, 5.0)
    assert fault.reason == "the seat of rank 2 was lost: its node has died"


def test_a_seat_lost_before_it_had_a_rank_is_a_fault_of_none() -> None:
    before = time.time()
    fault = placement_fault(RuntimeError("its node has died"))
    assert fault.rank is None and fault.weight is Weight.KILLED
    assert fault.reason == "a seat was lost: its node has died"
    assert before <= fault.time <= time.time()


def test_overdue_ranks_failed_when_they_fell_silent() -> None:
    before = time.time()
    for fault in (silence_fault(3, 7.5, 5.0), stall_fault(3, 4, 7.5, 5.0, "hang_floor_s", None)):
        assert (fault.rank, fault.weight) == (3, Weight.OVERDUE)
        assert before - 7.5 <= fault.time <= time.time() - 7.5
        assert " 7.5 s" in fault.reason and "rank 3 " in fault.reason
