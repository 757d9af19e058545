"""Stragglers among made-up steps."""

import random

from moelstrom.cluster.events import Step
from moelstrom.cluster.stragglers import QUIET_S, WINDOW, Straggler, Stragglers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def feed(
    stragglers: Stragglers, size: int, slow: dict[int, dict[str, float]], noise: float, steps: int
) -> list[Straggler]:
    """Steps of 40 ms of work, `noise` its relative spread; `slow` replaces parts of a rank."""
    draw = random.Random(0)
    found = []
    for _ in range(steps):
        own = [{"data": 0.002, "compute": 0.038, **slow.get(rank, {})} for rank in range(size)]
        work = [{k: v * draw.lognormvariate(0, noise) for k, v in o.items()} for o in own]
        longest = max(sum(parts.values()) for parts in work)
        for rank, parts in enumerate(work):
            step = {**parts, "wait": longest - sum(parts.values()) + 0.01, "update": 0.005}
            found += stragglers.take(rank, Step(0.0, parts=step))
    return found


def test_the_slow_rank_and_its_part_are_named() -> None:
    for size in (2, 5):
        found = feed(Stragglers(size, 1.5), size, {1: {"data": 0.08}}, 0.1, WINDOW)
        assert [(s.rank, s.part) for s in found] == [(1, "data")]
        assert 2.5 < found[0].factor < 3.5
    found = feed(Stragglers(2, 1.5), 2, {0: {"data": 0.035}}, 0.1, WINDOW)
    assert [(s.rank, s.part) for s in found] == [(0, "data")]  # Though it computes for longer.
    found = feed(Stragglers(3, 1.5), 3, {2: {"compute": 0.08}}, 0.1, WINDOW)
    assert [(s.rank, s.part) for s in found] == [(2, "compute")]


def test_noise_names_nobody() -> None:
    assert feed(Stragglers(2, 1.5), 2, {}, 0.3, 50 * WINDOW) == []
    assert feed(Stragglers(8, 1.5), 8, {}, 0.3, 50 * WINDOW) == []


def test_a_few_slow_steps_name_nobody() -> None:
    stragglers = Stragglers(2, 1.5)
    found = feed(stragglers, 2, {}, 0.1, 12) + feed(stragglers, 2, {0: {"compute": 1.0}}, 0.1, 8)
    assert found == []


def test_microseconds_are_noise() -> None:
    slow = {0: {"data": 0, "compute": 1e-4}, 1: {"data": 0, "compute": 1e-3}}
    assert feed(Stragglers(2, 1.5), 2, slow, 0.1, WINDOW) == []


def test_a_rank_is_named_once_a_minute() -> None:
    clock = Clock()
    stragglers = Stragglers(2, 1.5, clock)
    slow = {0: {"compute": 0.2}}
    assert len(feed(stragglers, 2, slow, 0.1, 5 * WINDOW)) == 1
    clock.now = QUIET_S
    assert len(feed(stragglers, 2, slow, 0.1, 5 * WINDOW)) == 1


def test_steps_without_parts_and_one_rank_alone() -> None:
    assert Stragglers(2, 1.5).take(0, Step(0.0, step=1)) == []
    assert feed(Stragglers(1, 1.5), 1, {}, 0.1, 2 * WINDOW) == []
