"""Slow ranks and links must be named, and nothing else."""

import json
import math
from dataclasses import asdict, replace
from itertools import combinations

import network_reports as nr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.collectives_bench.schema import BenchReport, Collective
from moelstrom.collectives_bench.suspects import find, judge_pairs, late_ranks, pair_rounds

NOISE = 0.03
SIZES = (1024, 16 * 1024, nr.MIB, 16 * nr.MIB)


@given(st.lists(st.integers(0, 99), min_size=2, max_size=17, unique=True))
def test_rounds_meet_every_pair_once(ranks: list[int]) -> None:
    rounds = pair_rounds(ranks)
    met = [tuple(pair) for pairs in rounds for pair in pairs]
    assert sorted(met) == sorted((min(p), max(p)) for p in combinations(ranks, 2))
    assert len(rounds) == len(ranks) - 1 + len(ranks) % 2
    for pairs in rounds:
        together = [rank for pair in pairs for rank in pair]
        assert len(together) == len(set(together))


def _pairs(
    world: int,
    hosts: int = 1,
    rank: int | None = None,
    link: tuple[int, int] | None = None,
    late: float = 0.0,
    share: float = 1.0,
    seed: int = 0,
) -> BenchReport:
    """All pairs: `rank` or `link` has `late` more latency and `share` of the bandwidth."""
    random, each = np.random.default_rng(seed), world // hosts
    found = []
    for low, high in combinations(range(world), 2):
        bad = rank in (low, high) or link == (low, high)
        near = low // each == high // each
        alpha, beta = (1e-5, 1e10) if near else (4e-5, 2e9)
        for size in SIZES:
            s = alpha + bad * late + size / (beta * (share if bad else 1))
            s *= math.exp(random.normal(0, NOISE))
            found.append(nr.measurement("send_recv", [low, high], size, s, f"pairs {low}-{high}"))
    return nr.report(found, hosts, world)


@pytest.mark.parametrize("world", [3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_a_slow_rank_among_few_is_named_alone(world: int, seed: int) -> None:
    late = find(_pairs(world, rank=world - 1, late=1e-3, seed=seed))
    assert [(s.kind, s.ranks, s.measure) for s in late] == [("rank", [world - 1], "latency")]
    assert late[0].slowdown > 50
    narrow = find(_pairs(world, rank=0, share=0.5, seed=seed))
    assert [(s.kind, s.ranks, s.measure) for s in narrow] == [("rank", [0], "bandwidth")]
    assert narrow[0].slowdown == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("world", [3, 4, 8])
def test_a_slow_link_is_named_and_its_ends_are_not(world: int) -> None:
    found = find(_pairs(world, link=(0, 2), share=0.3))
    assert [(s.kind, s.ranks) for s in found] == [("link", [0, 2])]
    assert "link 0 (host0) - 2 (host0): " in found[0].text


def test_links_between_hosts_are_not_held_against_those_within() -> None:
    assert find(_pairs(8, hosts=2)) == []
    found = find(_pairs(8, hosts=2, link=(1, 6), late=1e-3))
    assert [(s.kind, s.ranks, s.scope) for s in found] == [("link", [1, 6], "between hosts")]


def test_a_slow_rank_on_a_host_of_two_does_not_take_its_neighbour_along() -> None:
    found = find(_pairs(4, hosts=2, rank=3, late=1e-3))
    assert [(s.kind, s.ranks, s.scope) for s in found] == [("rank", [3], "between hosts")]


def test_a_rank_slow_on_both_kinds_of_links_is_slow_everywhere() -> None:
    (found,) = find(_pairs(8, hosts=2, rank=5, late=1e-3))
    assert (found.ranks, found.scope) == ([5], "everywhere")


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 9), st.integers(0, 2**31))
def test_nothing_is_named_in_noise(world: int, seed: int) -> None:
    assert find(_pairs(world, seed=seed)) == []


def test_a_moment_of_other_work_is_no_slow_link() -> None:
    report = _pairs(4)
    spoilt = [c for c in report.collectives if c.ranks == [1, 2] and c.bytes in SIZES[1:3]]
    for c in spoilt:
        report.collectives.remove(c)
        report.collectives.append(replace(c, p50_s=50 * c.p50_s))
    assert len(spoilt) == 2
    assert find(report) == []


@pytest.mark.parametrize(("spread", "named"), [(0.05, 1), (10.0, 0)])
def test_iterations_that_scatter_widely_ask_for_more_evidence(spread: float, named: int) -> None:
    report = _pairs(4, rank=2, share=0.6)
    report.collectives = [replace(c, p95_s=c.p50_s * (1 + spread)) for c in report.collectives]
    assert len(find(report)) == named


def test_what_varies_that_much_anyway_is_not_named() -> None:
    random = np.random.default_rng(0)
    pairs = [*combinations(range(8), 2)]
    times = dict(zip(pairs, np.exp(random.normal(0, 0.2, len(pairs))).tolist(), strict=True))
    assert max(times.values()) > 1.25
    assert judge_pairs(times, {}, "bandwidth") == []


def test_a_slow_rank_and_a_slow_link_elsewhere_are_both_named() -> None:
    times = dict.fromkeys(combinations(range(8), 2), 1.0)
    times |= {pair: 3.0 for pair in times if 2 in pair}
    times[5, 7] = 2.0
    found = judge_pairs(times, {}, "bandwidth")
    assert [(s.kind, s.ranks, s.slowdown) for s in found] == [
        ("rank", [2], pytest.approx(3)),
        ("link", [5, 7], pytest.approx(2)),
    ]


def test_with_two_ranks_no_one_is_blamed() -> None:
    assert find(_pairs(2, rank=1, late=1e-3)) == []


def _late(op: str, rank: int, wait: float, world: int = 4) -> list[Collective]:
    found = []
    for size in nr.SIZES:
        s = 1e-5 + size / 1e10
        own = [s * (1 + 0.1 * r) + (r != rank) * wait for r in range(world)]
        found.append(nr.measurement(op, range(world), size, max(own), own=own))
    return found


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("rank", [0, 3])
def test_the_rank_that_waits_least_arrives_last(op: str, rank: int) -> None:
    (found,) = find(nr.report(_late(op, rank, 5e-3)))
    assert (found.kind, found.ranks, found.measure) == ("rank", [rank], "arrival")
    assert "arrives late" in found.text


LATE, EVEN, APART, CLOSE = (9.0, 9.1, 9.2, 3.0), (9.0,) * 4, (6.0, 8.0, 10.0, 4.0), (9, 9, 9, 8)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ([LATE] * 4, True),
        ([LATE], False),
        ([LATE, *[EVEN] * 3], False),
        ([*[LATE] * 2, *[EVEN] * 8], False),
        # Large messages take longer than any wait.
        ([*[LATE] * 3, *[EVEN] * 3], True),
        ([APART] * 4, False),
        ([CLOSE] * 4, False),
    ],
)
def test_what_is_evidence_of_a_late_rank(sizes: list[tuple[float, ...]], named: bool) -> None:
    runs = [
        nr.measurement("all_reduce", range(4), 1024 << i, max(own), own=own)
        for i, own in enumerate(sizes)
    ]
    assert [s.ranks for s in late_ranks(runs, {})] == [[3]] * named


@pytest.mark.parametrize(("wait", "named"), [(5e-3, 1), (5e-6, 0)])
def test_of_two_ranks_only_a_long_wait_counts(wait: float, named: int) -> None:
    assert len(late_ranks(_late("all_reduce", 1, wait, world=2), {})) == named


def test_only_operations_that_wait_for_everyone_tell_who_is_late() -> None:
    # In a broadcast some rank may leave early by right.
    assert late_ranks(_late("broadcast", 2, 5e-3), {}) == []
    assert late_ranks(_late("all_reduce", 2, 0.0), {}) == []


def test_one_lucky_size_is_no_evidence() -> None:
    runs = _late("all_reduce", 0, 0.0)
    runs[3] = _late("all_reduce", 1, 5e-3)[3]
    assert late_ranks(runs, {}) == []


def test_suspects_are_json() -> None:
    found = find(_pairs(4, rank=3, late=1e-3))
    assert json.loads(json.dumps([asdict(s) for s in found], allow_nan=False))
