"""Finding a slow rank or link among many in O(log n) rounds instead of the n - 1 of all pairs.

A set is cut into four quarters; three rounds measure the six unions of two of them, two at once.
Every union is of the same size, so the fastest is the standard. A quarter whose three unions are
all slow holds the culprit; a slow union of two other quarters holds a slow link between the two.
Either goes on as a smaller set, until four ranks are left, whose six pairs name it: 3 log4(n)
rounds for a rank.
"""

from collections.abc import Callable, Mapping, Sequence

from .suspects import FACTOR, Pair, Suspect, judge_pairs, pair_rounds

Measure = Callable[[list[list[int]]], list[float]]
"""Runs one operation in every group at once and gives each group's time in seconds."""

ROUNDS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))


def bisect(
    ranks: Sequence[int],
    measure: Measure,
    hosts: Mapping[int, str] | None = None,
    factor: float = FACTOR,
) -> list[Suspect]:
    """Name slow ranks and links among `ranks`, which must be alike: of one host, or one of each.

    `measure` times an operation that uses every link of a group, an all-to-all. A slow link shows
    where its message outlasts the others of its rank: a small message for latency. Not found are
    slow ranks in three quarters or more, which leave no fast union, and links between the last
    n % 4 ranks and the others: measure all pairs then.
    """
    hosts = hosts or {}
    if len(ranks) < 8:
        return _judge(ranks, measure, hosts, factor)
    even = len(ranks) - len(ranks) % 4
    todo: list[list[int]] = [[*ranks[:even]], [*ranks[even:]]]
    healthy: list[int] = []
    found: dict[tuple[int, ...], Suspect] = {}
    while todo:
        members = _fill(todo.pop(0), healthy)
        if len(members) <= 4:
            for suspect in _judge(members, measure, hosts, factor):
                found.setdefault(tuple(suspect.ranks), suspect)
            continue
        smaller, fast = _narrow(members, measure, factor)
        # Fast unions of the whole are the largest pool; later ones would add nothing.
        healthy = healthy or fast
        todo += smaller
    return list(found.values())


def _fill(members: list[int], healthy: list[int]) -> list[int]:
    """`members` with healthy ranks added up to a multiple of four."""
    others = [rank for rank in healthy if rank not in members]
    return members + others[: -len(members) % 4]


def _judge(
    ranks: Sequence[int], measure: Measure, hosts: Mapping[int, str], factor: float
) -> list[Suspect]:
    times: dict[Pair, float] = {}
    for pairs in pair_rounds(ranks):
        for (low, high), seconds in zip(pairs, measure(pairs), strict=True):
            times[low, high] = seconds
    return judge_pairs(times, hosts, "latency", factor)


def _narrow(
    members: list[int], measure: Measure, factor: float
) -> tuple[list[list[int]], list[int]]:
    """The smaller sets that hold a culprit, and the ranks of the fastest union."""
    size = len(members) // 4
    quarters = [members[i * size : (i + 1) * size] for i in range(4)]
    times: dict[Pair, float] = {}
    for unions in ROUNDS:
        groups = [quarters[i] + quarters[j] for i, j in unions]
        times.update(zip(unions, measure(groups), strict=True))
    best = min(times, key=lambda union: times[union])
    slow = {union for union in times if times[union] > factor * times[best]}
    inside = [q for q in range(4) if all(union in slow for union in times if q in union)]
    between = [union for union in sorted(slow) if not set(union) & set(inside)]
    sets = [quarters[q] for q in inside] + [quarters[i] + quarters[j] for i, j in between]
    return sets, quarters[best[0]] + quarters[best[1]]
