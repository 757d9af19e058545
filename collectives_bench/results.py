"""From the ranks' times to a measurement."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .operators import OPERATORS
from .plan import Point
from .schema import Collective, RankTimes

TICK_S = 1e-9
"""The least time of a call; rates stay finite."""


class Found(NamedTuple):
    """A rank's seconds of each iteration, and its wrong elements (None: not checked)."""

    seconds: list[float]
    wrong: int | None


def collective(point: Point, size: int, found: Mapping[int, Found]) -> Collective:
    """What the ranks of one communicator found over `size` bytes."""
    # A device's clock ticks in half microseconds: a call may take none of them.
    times = np.maximum([rank.seconds for rank in found.values()], TICK_S)
    slowest = times.max(axis=0)
    mean = float(times.mean())
    n, rate = len(found), size / mean
    wrong = [rank.wrong for rank in found.values() if rank.wrong is not None]
    p50, p95 = np.percentile(slowest, (50, 95)).tolist()
    return Collective(
        op=point.op,
        dtype=point.dtype,
        in_place=point.in_place,
        group=point.setting.name,
        ranks=list(found),
        at_once=point.setting.at_once,
        load=point.load,
        bytes=size,
        count=point.count(n) if size else 0,
        iterations=times.shape[1],
        mean_s=mean,
        p50_s=p50,
        p95_s=p95,
        max_s=float(slowest.max()),
        algbw=rate,
        busbw=rate * OPERATORS[point.op].factor(n),
        wrong=sum(wrong) if wrong else None,
        per_rank=[_rank_times(rank, row) for rank, row in zip(found, times, strict=True)],
    )


def _rank_times(rank: int, seconds: np.ndarray) -> RankTimes:
    p50, p95 = np.percentile(seconds, (50, 95)).tolist()
    return RankTimes(rank, float(seconds.mean()), p50, p95, float(seconds.max()))
