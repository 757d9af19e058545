"""Two runs against each other: what counts as a change, and CI's exit code."""

from dataclasses import replace
from typing import Any

import bench_reports
import network_reports as nr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.collectives_bench.compare import compare
from moelstrom.collectives_bench.schema import BenchReport

RANKS = [0, 1]


def _run(scale: float = 1.0, spread: float = 0.01, **changes: Any) -> BenchReport:
    times = {1024: 1e-5, nr.MIB: 1e-4}
    return nr.report(
        nr.measurement("all_reduce", RANKS, size, scale * s, spread=spread, **changes)
        for size, s in times.items()
    )


def test_equal_runs_pass() -> None:
    found = compare(_run(), _run())
    assert (found.exit_code, found.notes) == (0, [])
    assert [row.status for row in found.rows] == ["same", "same"]
    assert found.verdict == "PASS at 10%: 2 same"


@pytest.mark.parametrize(
    ("scale", "status", "code"),
    [(1.05, "same", 0), (1.2, "slower", 1), (0.95, "same", 0), (0.8, "faster", 0)],
)
def test_changes_beyond_the_threshold_count(scale: float, status: str, code: int) -> None:
    found = compare(_run(), _run(scale))
    assert {row.status for row in found.rows} == {status}
    assert found.exit_code == code
    assert found.rows[0].ratio == pytest.approx(scale)
    assert found.rows[0].new_rate == pytest.approx(found.rows[0].old_rate / scale)  # type: ignore[operator]


@pytest.mark.parametrize("was", [1e-4, 1e-6, 3.0])
@pytest.mark.parametrize(
    ("scale", "status"),
    # At a tenth of the *old* time: 1.11 of it is above, though 0.099 of the new time; 0.9 is below.
    [(1.101, "slower"), (1.11, "slower"), (1.099, "same"), (0.901, "same"), (0.899, "faster")],
)
def test_the_threshold_is_a_share_of_the_baselines_time(
    was: float, scale: float, status: str
) -> None:
    old, new = (
        nr.report([nr.measurement("all_reduce", RANKS, 1024, seconds, spread=0.0)])
        for seconds in (was, scale * was)
    )
    assert [row.status for row in compare(old, new).rows] == [status]
    assert compare(old, new, threshold=0.5).rows[0].status == "same"


@pytest.mark.parametrize(("old", "new"), [(0.5, 0.01), (0.01, 0.5)])
def test_changes_within_either_runs_spread_do_not(old: float, new: float) -> None:
    assert compare(_run(spread=old), _run(1.3, spread=new)).exit_code == 0
    assert compare(_run(spread=old), _run(2.5, spread=new)).exit_code == 1


def test_the_threshold_is_the_users() -> None:
    assert compare(_run(), _run(1.2), threshold=0.3).exit_code == 0
    with pytest.raises(UserError, match="threshold: 0"):
        compare(_run(), _run(), threshold=0)


def test_wrong_results_fail_however_fast() -> None:
    found = compare(_run(), _run(0.5, wrong=3))
    assert {row.status for row in found.rows} == {"wrong"}
    assert found.exit_code == 1


def test_missing_fails_and_new_does_not_and_failures_come_first() -> None:
    old, new = _run(), _run()
    new.collectives[0] = replace(new.collectives[0], dtype="bf16")
    found = compare(old, new)
    assert [row.status for row in found.rows] == ["missing", "same", "new"]
    assert (found.exit_code, found.verdict) == (1, "FAIL at 10%: 1 missing, 1 new, 1 same")
    gone, _, fresh = found.rows
    assert (gone.new_s, gone.ratio, fresh.old_s) == (None, None, None)
    assert gone.what == "all_reduce fp32 1 KiB out of place, world [0,1]"


@pytest.mark.parametrize(
    "change",
    [
        {"in_place": True},
        {"at_once": 2},
        {"group": "node"},
        {"ranks": [2, 3]},
        {"load": "zipf:1"},
        {"bytes": 2048},
        {"op": "all_gather"},
    ],
)
def test_only_like_is_compared_with_like(change: dict) -> None:
    new = _run(5.0)
    new.collectives.append(replace(new.collectives[0], **change))
    assert [row.status for row in compare(_run(), new).rows] == ["slower", "slower", "new"]


def test_runs_that_share_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="baseline: none of its 2 measurements"):
        compare(_run(), bench_reports.hardware())


def test_hardware_is_compared_by_device_and_shape() -> None:
    old, new = bench_reports.hardware(), bench_reports.hardware()
    slow = next(h for h in new.hardware if h.bench == "gemm" and h.rank == 1)
    new.hardware[new.hardware.index(slow)] = replace(slow, p50_s=2 * slow.p50_s)
    first, *rest = compare(old, new).rows
    assert len(rest) == len(old.hardware) - 1
    assert (first.status, first.what) == ("slower", "gemm sweep bf16 M=256 N=256 K=256 rank 1")
    assert {row.status for row in rest} == {"same"}


def test_what_makes_runs_hard_to_compare_is_noted() -> None:
    new = _run()
    new.backend, new.versions, new.ended = "nccl", {"torch": "2.14.0"}, "rank 1 died"
    assert compare(_run(), new).notes == [
        "backend: gloo in the baseline, nccl now",
        "ended: complete in the baseline, rank 1 died now",
        "version of torch: 2.13.0 in the baseline, 2.14.0 now",
    ]


@given(st.floats(0.01, 100), st.floats(0, 3))
def test_a_run_never_fails_against_itself(scale: float, spread: float) -> None:
    assert compare(_run(scale, spread), _run(scale, spread)).exit_code == 0
