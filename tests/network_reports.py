"""Reports of imagined clusters whose links, ranks and laws are known, for tests of the analysis."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moelstrom.collectives_bench.schema import BenchReport, Collective, Host, RankTimes

KIB, MIB = 2**10, 2**20
SIZES = tuple(2**i for i in range(10, 27))


def bus_factor(op: str, n: int) -> float:
    """nccl-tests' factors, written out anew."""
    table = {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0, "send_recv": 1.0}
    return table.get(op, (n - 1) / n)


def measurement(
    op: str,
    ranks: Sequence[int],
    size: int,
    seconds: float,
    group: str = "world",
    dtype: str = "fp32",
    at_once: int = 1,
    in_place: bool = False,
    load: str | None = None,
    own: Sequence[float] | None = None,
    spread: float = 0.05,
    wrong: int | None = 0,
) -> Collective:
    """One measurement of median `seconds`; `own` gives each rank's."""
    times = own or [seconds] * len(ranks)
    rate = size / seconds
    return Collective(
        op=op,
        dtype=dtype,
        in_place=in_place,
        group=group,
        ranks=list(ranks),
        at_once=at_once,
        load=load,
        bytes=size,
        count=size // 4,
        iterations=20,
        mean_s=seconds,
        p50_s=seconds,
        p95_s=seconds * (1 + spread),
        max_s=seconds * (1 + 2 * spread),
        algbw=rate,
        busbw=rate * bus_factor(op, len(ranks)),
        wrong=wrong,
        per_rank=[RankTimes(r, t, t, t, t) for r, t in zip(ranks, times, strict=True)],
    )


def sweep(
    op: str,
    ranks: Sequence[int],
    time: Callable[[int], float],
    group: str = "world",
    **changes: Any,
) -> list[Collective]:
    """`time(bytes)` at every size."""
    return [measurement(op, ranks, size, time(size), group, **changes) for size in SIZES]


def report(collectives: Iterable[Collective], hosts: int = 1, world: int = 8) -> BenchReport:
    """A finished run of `world` ranks spread evenly over `hosts`."""
    each = world // hosts
    return BenchReport(
        kind="collectives",
        started="2026-11-25T10:00:00+00:00",
        command="moelstrom bench collectives",
        backend="gloo",
        world_size=world,
        hosts=[
            Host(f"host{h}", [*range(h * each, (h + 1) * each)], "a device", each)
            for h in range(hosts)
        ],
        versions={"torch": "2.13.0"},
        config={},
        collectives=list(collectives),
        ended="complete",
    )
