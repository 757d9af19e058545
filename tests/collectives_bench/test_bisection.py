"""Bisection over simulated clusters: who is slow, found in few rounds."""

import math
from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.collectives_bench.bisection import bisect

Link = tuple[int, int]


class Cluster:
    """Ranks whose all-to-all takes as long as its slowest rank or link."""

    def __init__(self, slow_ranks: Iterable[int] = (), slow_links: Iterable[Link] = ()) -> None:
        self.ranks, self.links = set(slow_ranks), set(slow_links)
        self.random = np.random.default_rng(0)
        self.rounds = 0

    def measure(self, groups: list[list[int]]) -> list[float]:
        together = [rank for group in groups for rank in group]
        assert len(together) == len(set(together)), "a rank cannot be in two groups at once"
        self.rounds += 1
        return [self._time(set(group)) for group in groups]

    def _time(self, group: set[int]) -> float:
        slow = bool(group & self.ranks) or any(set(link) <= group for link in self.links)
        # The latency of an all-to-all grows with its group: only like sizes compare.
        return (2.0 if slow else 1.0) * len(group) * math.exp(self.random.normal(0, 0.02))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_one_slow_rank_is_named(data: st.DataObject) -> None:
    world = data.draw(st.integers(3, 300))
    rank = data.draw(st.integers(0, world - 1))
    found = bisect(range(world), Cluster([rank]).measure)
    assert [(s.kind, s.ranks) for s in found] == [("rank", [rank])]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_one_slow_link_is_named(data: st.DataObject) -> None:
    # Of the ranks left over by four, links to the others are not met.
    world = 4 * data.draw(st.integers(1, 64))
    ends = data.draw(st.lists(st.integers(0, world - 1), min_size=2, max_size=2, unique=True))
    low, high = sorted(ends)
    found = bisect(range(world), Cluster(slow_links=[(low, high)]).measure)
    assert [(s.kind, s.ranks) for s in found] == [("link", [low, high])]


@settings(deadline=None)
@given(st.integers(3, 200))
def test_a_healthy_cluster_has_no_suspects(world: int) -> None:
    assert bisect(range(world), Cluster().measure) == []


def test_two_slow_ranks_are_both_named() -> None:
    for pair in combinations(range(0, 64, 7), 2):
        found = bisect(range(64), Cluster(pair).measure)
        assert sorted(s.ranks for s in found) == [[r] for r in pair]


@pytest.mark.parametrize(("world", "most"), [(64, 9), (1024, 18), (10_000, 27)])
def test_rounds_grow_with_the_logarithm(world: int, most: int) -> None:
    cluster = Cluster([world // 3])
    (found,) = bisect(range(world), cluster.measure)
    assert found.ranks == [world // 3]
    assert cluster.rounds <= most


def test_ranks_need_not_be_consecutive() -> None:
    rail = [*range(3, 400, 8)]
    (found,) = bisect(rail, Cluster([203]).measure)
    assert found.ranks == [203]
