"""Which rank is blamed, and when: by answers with given times, without processes."""

from typing import Any

from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.watch import Poll, RankWatch, overdue

CONFIG = ClusterConfig(heartbeat_timeout_s=30)


def watch(rank: int, steps: int = 5, every: float = 0.1) -> RankWatch:
    """A rank whose last of `steps` steps ended at time 0."""
    made = RankWatch(rank, -10.0)
    for step in range(steps):
        tell(made, 0.0, "step", step=step, time=(step - steps) * every)
    return made


def tell(rank: RankWatch, now: float, kind: str, **event: Any) -> None:
    event = {"kind": kind, "time": now, **event}
    rank.take(Poll((event,), rank.seen, 0.0, rank.stage), now)


def beat(rank: RankWatch, now: float, stage: str | None, silent_s: float = 0.0) -> None:
    rank.take(Poll((), rank.seen, silent_s, stage), now)


def verdict(ranks: list[RankWatch], now: float, config: ClusterConfig = CONFIG) -> str:
    fault = overdue(ranks, config, now)
    return "" if fault is None else fault.reason


def test_the_rank_outside_the_collective_is_blamed() -> None:
    ranks = [watch(0), watch(1), watch(2)]
    for rank, stage in zip(ranks, ("wait", "wait", "compute"), strict=True):
        beat(rank, 4.9, stage)
    assert verdict(ranks, 4.9) == ""
    assert "rank 2 made no progress for 5.1 s after step 4, in compute" in verdict(ranks, 5.1)


def test_it_is_blamed_though_its_last_step_came_later() -> None:
    ranks = [watch(0), watch(1)]
    tell(ranks[1], 1.0, "step", step=5)
    beat(ranks[0], 5.5, "wait")
    beat(ranks[1], 5.5, "data")
    assert verdict(ranks, 5.5) == ""
    assert verdict(ranks, 6.1).startswith("rank 1 ")


def test_without_stages_the_smallest_step_is_blamed() -> None:
    ranks = [watch(0, 6), watch(1, 5)]
    assert verdict(ranks, 6.0).startswith("rank 1 ")


def test_a_silent_rank_is_blamed_whatever_it_did_last() -> None:
    ranks = [watch(0), watch(1)]
    beat(ranks[0], 6.0, "compute")
    beat(ranks[1], 6.0, "wait", silent_s=5.5)
    assert verdict(ranks, 6.0).startswith("rank 1 ")


def test_slow_steps_may_take_longer() -> None:
    ranks = [watch(0, every=2.0), watch(1, every=2.0)]
    assert verdict(ranks, 19.0) == ""
    assert "(cluster.hang_factor: 20 s)" in verdict(ranks, 20.5)


def test_before_three_steps_there_is_no_usual_time() -> None:
    ranks = [watch(0, steps=2), watch(1, steps=2)]
    assert verdict(ranks, 200.0, CONFIG.model_copy(update={"heartbeat_timeout_s": 1e4})) == ""


def test_an_announced_phase_is_no_hang_for_anybody() -> None:
    ranks = [watch(0), watch(1)]
    tell(ranks[0], 1.0, "phase", name="evaluate", limit_s=20.0)
    for rank, stage in zip(ranks, ("evaluate", "wait"), strict=True):
        beat(rank, 20.0, stage)
    assert verdict(ranks, 20.0) == ""
    for rank in ranks:
        tell(rank, 20.5, "step", step=5)
        beat(rank, 25.0, "compute")
    assert verdict(ranks, 25.0) == ""
    assert "(cluster.hang_floor_s: 5 s)" in verdict(ranks, 26.0)


def test_an_announced_phase_ends_too() -> None:
    ranks = [watch(0), watch(1)]
    tell(ranks[0], 1.0, "phase", name="warm-up", limit_s=20.0)
    beat(ranks[1], 21.5, "wait")
    beat(ranks[0], 21.5, "compute")
    assert "rank 0 made no progress for 20.5 s" in verdict(ranks, 21.5)
    assert "the announced phase's limit: 20 s" in verdict(ranks, 21.5)


def test_a_long_save_may_take_as_long_as_a_start() -> None:
    ranks = [watch(0), watch(1)]
    for at in (10.0, 29.0):
        beat(ranks[0], at, "save")
        beat(ranks[1], at, "wait")
        assert verdict(ranks, at) == ""
    assert "cluster.progress_timeout_s: 12 s" in verdict(
        ranks, 29.0, CONFIG.model_copy(update={"progress_timeout_s": 12.0})
    )


def test_silence_counts_from_the_last_answer() -> None:
    ranks = [watch(0), watch(1)]
    beat(ranks[1], 1.0, "compute", silent_s=0.5)
    config = CONFIG.model_copy(update={"heartbeat_timeout_s": 3.0, "hang_floor_s": 60.0})
    assert "rank 0 gave no sign of life for 3.4 s" in verdict(ranks, 3.4, config)


def test_an_ending_interpreter_needs_no_beats() -> None:
    ranks = [watch(0)]
    tell(ranks[0], 1.0, "phase", name="exit", limit_s=60.0)
    for at in (35.0, 60.5):
        beat(ranks[0], at, "idle", silent_s=at - 1)
        assert verdict(ranks, at) == ""
    beat(ranks[0], 61.5, "idle", silent_s=60.5)
    assert "the announced phase's limit: 60 s" in verdict(ranks, 61.5)


def test_the_usual_step_is_the_median() -> None:
    """One step of a minute among steps of a tenth allows nobody a minute."""
    rank = watch(0, steps=6)
    tell(rank, 60.0, "step", step=6, time=60.0)
    beat(rank, 64.9, "compute")
    assert verdict([rank], 64.9) == ""
    beat(rank, 65.1, "compute")
    assert "(cluster.hang_floor_s: 5 s)" in verdict([rank], 65.1)


def test_log_lines_are_no_progress() -> None:
    rank = watch(0)
    tell(rank, 4.0, "log", stream="stdout", line="still waiting")
    beat(rank, 5.1, "compute")
    assert "rank 0 made no progress for 5.1 s" in verdict([rank], 5.1)
