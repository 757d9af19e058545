"""Which rank or link is slow: from pairwise tests, and from who keeps the others waiting.

A collective takes every rank the same time, that of its slowest rank, so its times hide which one
that is. Two things show it. Between pairs, a slow rank is slow with every partner, a slow link only
with one. And in a synchronous operation the rank that arrives last waits least: its own time is the
shortest, everyone else's holds the wait for it.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from .fit import MAD_TO_SIGMA, host_of
from .operators import OPERATORS
from .schema import BenchReport, Collective
from .sizes import label

FACTOR = 1.25
"""Slower than the rest by less than this is not named (our choice)."""
P95 = 1.645
"""Standard deviations from the median to p95 of a normal distribution."""
DEVIATIONS = 5.0
"""Nor is what lies within this many robust deviations of the rest."""
ALONE = 2.0
"""A rank arrives late where its time lies this many times further below the others' than those lie
apart; of two ranks, where the other's is this many times its own."""

Pair = tuple[int, int]
Measure = Literal["latency", "bandwidth"]
T = TypeVar("T")
Excess = tuple[float, float | None]


@dataclass(frozen=True)
class Suspect:
    """A slow rank or link: `slowdown` is its time over the others', `deviations` how many robust
    deviations away that is (None where the others do not vary)."""

    kind: Literal["rank", "link"]
    ranks: list[int]
    scope: str
    measure: Literal["latency", "bandwidth", "arrival"]
    slowdown: float
    deviations: float | None
    text: str


def find(report: BenchReport, factor: float = FACTOR) -> list[Suspect]:
    """Slow ranks and links of a report, each named once, the slowest first."""
    hosts = host_of(report)
    found = _from_pairs(report, hosts, factor) + late_ranks(report.collectives, hosts)
    worst: dict[tuple[str, tuple[int, ...]], Suspect] = {}
    for suspect in sorted(found, key=lambda s: -s.slowdown):
        worst.setdefault((suspect.kind, tuple(suspect.ranks)), suspect)
    return list(worst.values())


def pair_rounds(ranks: Sequence[int]) -> list[list[list[int]]]:
    """Rounds of disjoint pairs in which every pair meets once (circle method): n - 1 rounds, n for
    an odd n."""
    ring: list[int | None] = [*ranks]
    if len(ring) % 2:
        ring.append(None)
    rounds = []
    for _ in range(len(ring) - 1):
        pairs = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        rounds.append([sorted([a, b]) for a, b in pairs if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def _from_pairs(report: BenchReport, hosts: Mapping[int, str], factor: float) -> list[Suspect]:
    found: list[Suspect] = []
    for measure, runs in _bands(report.collectives).items():
        noise = statistics.median(_noise(c) for c in runs)
        found += judge_pairs(_best_ratios(runs), hosts, measure, factor, noise)
    return found


def _bands(collectives: Iterable[Collective]) -> dict[Measure, list[Collective]]:
    """The tests of pairs in the smallest third of the sizes (by powers of two), where latency
    shows, and in the largest, where bandwidth does."""
    runs = [
        c
        for c in collectives
        if c.op == "send_recv" and len(c.ranks) == 2 and c.group.startswith("pairs")
    ]
    if not runs:
        return {}
    least, most = (math.log(edge(c.bytes for c in runs)) for edge in (min, max))
    third = (most - least) / 3 + 1e-9
    return {
        "latency": [c for c in runs if math.log(c.bytes) <= least + third],
        "bandwidth": [c for c in runs if math.log(c.bytes) >= most - third],
    }


def _noise(c: Collective) -> float:
    """Standard error of the logarithm of the median, were the iterations log-normal."""
    return 1.25 * math.log(max(1.0, c.p95_s / c.p50_s)) / P95 / math.sqrt(c.iterations)


def _best_ratios(runs: Iterable[Collective]) -> dict[Pair, float]:
    """Each pair's time over all pairs' median, at the pair's best size: a moment of other work
    spoils some sizes, a slow link all."""
    tables: dict[tuple[int, str, int], dict[Pair, float]] = defaultdict(dict)
    for c in runs:
        low, high = sorted(c.ranks)
        tables[c.bytes, c.dtype, c.at_once][low, high] = c.p50_s
    ratios: dict[Pair, list[float]] = defaultdict(list)
    for times in tables.values():
        middle = statistics.median_low(times.values())
        for pair, seconds in times.items():
            ratios[pair].append(seconds / middle)
    return {pair: min(found) for pair, found in ratios.items()}


def judge_pairs(
    times: Mapping[Pair, float],
    hosts: Mapping[int, str],
    measure: Measure,
    factor: float = FACTOR,
    noise: float = 0.0,
) -> list[Suspect]:
    """Slow ranks, then slow links between the others, from one time for each pair of ranks.

    `noise` is the standard error of a time's logarithm. Links within hosts and between hosts are
    judged apart.
    """
    kinds: dict[str, dict[Pair, float]] = defaultdict(dict)
    for pair, seconds in times.items():
        kinds[_scope(pair, hosts)][pair] = seconds
    slow = {scope: _slow_ranks(links, factor, noise) for scope, links in kinds.items()}
    found, named = [], set()
    for rank in sorted({r for ranks in slow.values() for r in ranks}):
        scopes = [scope for scope in slow if rank in slow[scope]]
        ratio, deviations = max((slow[scope][rank] for scope in scopes), key=lambda e: e[0])
        everywhere = len(scopes) == len([s for s in kinds if any(rank in p for p in kinds[s])])
        where = "everywhere" if everywhere else scopes[0]
        found.append(_suspect("rank", [rank], where, measure, ratio, deviations, hosts))
        named.add(rank)
    for scope, links in kinds.items():
        rest = {pair: t for pair, t in links.items() if not named & set(pair)}
        for pair, (ratio, deviations) in _outliers(rest, factor, noise).items():
            found.append(_suspect("link", [*pair], scope, measure, ratio, deviations, hosts))
    return found


def _scope(ranks: Iterable[int], hosts: Mapping[int, str]) -> str:
    return "within a host" if len({hosts.get(r) for r in ranks}) == 1 else "between hosts"


def _slow_ranks(links: Mapping[Pair, float], factor: float, noise: float) -> dict[int, Excess]:
    """Ranks whose best link is slow beside the others' best: then all their links are.

    A slow rank is in most pairs of a small group, so the pairs' own median would hide it. A rank
    with one link is not judged: that link may be at fault, or its partner.
    """
    mine: dict[int, list[float]] = defaultdict(list)
    for pair, seconds in links.items():
        for rank in pair:
            mine[rank].append(seconds)
    best = {rank: min(found) for rank, found in mine.items() if len(found) > 1}
    return _outliers(best, factor, noise) if len(best) > 2 else {}


def _outliers(values: Mapping[T, float], factor: float, noise: float) -> dict[T, Excess]:
    """(ratio to the median, robust deviations from it, both in logarithms) of what is slow."""
    if len(values) < 3:
        return {}
    logs = {key: math.log(value) for key, value in values.items()}
    middle = statistics.median_low(logs.values())
    # Of a few values, some shared by two ranks, the deviations alone may be zero by chance.
    sigma = MAD_TO_SIGMA * statistics.median_low(abs(v - middle) for v in logs.values())
    sigma = max(sigma, noise)
    found: dict[T, Excess] = {}
    for key, value in logs.items():
        if value - middle > max(math.log(factor), DEVIATIONS * sigma):
            found[key] = (math.exp(value - middle), (value - middle) / sigma if sigma else None)
    return found


def _suspect(
    kind: Literal["rank", "link"],
    ranks: list[int],
    scope: str,
    measure: Measure,
    ratio: float,
    deviations: float | None,
    hosts: Mapping[int, str],
) -> Suspect:
    names = " - ".join(f"{rank} ({hosts.get(rank, 'unknown host')})" for rank in ranks)
    what = "with every partner" if kind == "rank" else "though both ends are well with others"
    text = f"{kind} {names}: {ratio:.1f}x slower {what}, {scope} ({measure})"
    return Suspect(kind, ranks, scope, measure, ratio, deviations, text)


def late_ranks(collectives: Iterable[Collective], hosts: Mapping[int, str]) -> list[Suspect]:
    """Ranks that the others wait for, in most sizes of a symmetric operation."""
    series: dict[tuple, list[Collective]] = defaultdict(list)
    for c in collectives:
        if c.op in OPERATORS and OPERATORS[c.op].symmetric and len(c.per_rank) > 1:
            series[c.op, c.dtype, c.in_place, c.group, tuple(c.ranks), c.at_once].append(c)
    worst: dict[int, Suspect] = {}
    for found in series.values():
        late = _late(found, hosts)
        if late:
            rank = late.ranks[0]
            worst[rank] = max(late, worst.get(rank, late), key=lambda s: s.slowdown)
    return list(worst.values())


def _late(runs: list[Collective], hosts: Mapping[int, str]) -> Suspect | None:
    # Of large messages the transfer takes longer than the wait.
    half = sorted(runs, key=lambda c: c.bytes)[: (len(runs) + 1) // 2]
    late = [found for found in map(_waits_least, half) if found]
    rank = statistics.mode(rank for rank, _ in late) if late else None
    hits = [ratio for r, ratio in late if r == rank]
    # One size is no evidence, nor is a minority.
    if rank is None or len(hits) < 2 or 2 * len(hits) <= len(half):
        return None
    ratio, first = statistics.median(hits), half[0]
    text = (
        f"rank {rank} ({hosts.get(rank, 'unknown host')}): arrives late in {first.op}: from "
        f"{label(first.bytes)} on the others wait, {ratio:.1f}x its own time"
    )
    return Suspect("rank", [rank], first.group, "arrival", ratio, None, text)


def _waits_least(c: Collective) -> tuple[int, float] | None:
    """The rank whose time stands out below the others', and the next one over it."""
    first, *others = sorted(c.per_rank, key=lambda t: t.p50_s)
    ratio = others[0].p50_s / max(first.p50_s, 1e-12)
    apart = (others[0].p50_s - first.p50_s) > ALONE * (others[-1].p50_s - others[0].p50_s)
    clear = apart if len(others) > 1 else ratio > ALONE
    return (first.rank, ratio) if clear and ratio > FACTOR else None
