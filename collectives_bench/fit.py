"""The latency-bandwidth model of a collective: t(s) = alpha + s / beta, fitted to a sweep.

Residuals count relative to the time, so that 1 KiB weighs as much as 1 GiB. Outliers lose weight
(Huber, iteratively reweighted); communicators of one kind that were measured apart share a fit.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .schema import BenchReport, Collective

SIZES = 3
"""Fewest different sizes that a fit of two parameters needs to leave a residual."""
HUBER = 1.345
"""Residuals beyond this many deviations lose weight (95% efficiency on normal noise)."""
MAD_TO_SIGMA = 1.4826
SATURATED = 0.9
"""Share of the top bandwidth that counts as saturated (our choice: the paper gives no number)."""


@dataclass(frozen=True)
class Fit:
    """One operation's line over sizes in one kind of group.

    `size` is the ranks of the group, `local` those on one host, `factor` bus over algorithm
    bandwidth, `beta` algorithm bytes a second; residuals are |fit / measured - 1| over `points`,
    each (bytes, median seconds).
    """

    op: str
    dtype: str
    in_place: bool
    group: str
    size: int
    local: int
    at_once: int
    load: str | None
    factor: float
    alpha_s: float
    beta: float
    residual_median: float
    residual_worst: float
    points: tuple[tuple[int, float], ...]

    def seconds(self, size: float) -> float:
        """Time of `size` bytes on the line."""
        return self.alpha_s + size / self.beta

    @property
    def within_host(self) -> bool:
        """Whether the group's ranks share a host."""
        return self.local == self.size

    @property
    def busbw(self) -> float:
        """Bus bandwidth that the line nears."""
        return self.beta * self.factor

    def saturation(self, share: float = SATURATED) -> float:
        """Bytes at which the line reaches `share` of beta: alpha beta share / (1 - share)."""
        return self.alpha_s * self.beta * share / (1 - share)

    def measured_saturation(self, share: float = SATURATED) -> int | None:
        """Smallest measured size whose bandwidth reaches `share` of the highest; None where only
        the largest size does, because a longer sweep might have gone higher."""
        rates = [(size, size / seconds) for size, seconds in self.points]
        top = max(rate for _, rate in rates)
        first = next(size for size, rate in rates if rate >= share * top)
        return first if first < rates[-1][0] else None


Key = tuple[str, str, bool, str, int, int, int, str | None]


def fit_report(report: BenchReport) -> list[Fit]:
    """Fit every operation, dtype, placement, kind of group and load that has enough sizes."""
    runs: dict[Key, list[Collective]] = defaultdict(list)
    hosts = host_of(report)
    for c in report.collectives:
        if c.bytes > 0:
            local = max(Counter(hosts.get(r) for r in c.ranks).values())
            runs[_key(c, local)].append(c)
    fits = (_fit(key, found) for key, found in runs.items())
    return [f for f in fits if f is not None]


def host_of(report: BenchReport) -> dict[int, str]:
    """The host's name of every rank."""
    return {rank: host.name for host in report.hosts for rank in host.ranks}


def _key(c: Collective, local: int) -> Key:
    return c.op, c.dtype, c.in_place, c.group, len(c.ranks), local, c.at_once, c.load


def _fit(key: Key, runs: Iterable[Collective]) -> Fit | None:
    runs = sorted(runs, key=lambda c: c.bytes)
    sizes = np.array([c.bytes for c in runs], dtype=float)
    times = np.array([c.p50_s for c in runs])
    factor = float(np.median([c.busbw / c.algbw for c in runs if c.algbw > 0] or [1.0]))
    line = fit_line(sizes, times)
    if line is None:
        return None
    points = tuple((int(s), float(np.median(times[sizes == s]))) for s in np.unique(sizes))
    fit = Fit(*key, factor, *line, math.nan, math.nan, points)
    errors = [abs(fit.seconds(s) / t - 1) for s, t in points]
    return replace(fit, residual_median=float(np.median(errors)), residual_worst=max(errors))


def fit_line(sizes: np.ndarray, times: np.ndarray) -> tuple[float, float] | None:
    """(alpha, beta) of t = alpha + s / beta, with alpha >= 0.

    None with fewer than `SIZES` sizes, or where time does not grow with size.
    """
    if len(np.unique(sizes)) < SIZES or not (times > 0).all():
        return None
    columns = np.stack([1 / times, sizes / times], axis=1)
    weights = np.ones(len(times))
    for _ in range(50):
        alpha, slope = _solve(columns * weights[:, None], weights)
        off = np.abs(columns @ np.array([alpha, slope]) - 1)
        scale = max(MAD_TO_SIGMA * float(np.median(off)), 1e-12)
        # The root: the solver squares it.
        fresh = np.sqrt(np.minimum(1, HUBER * scale / np.maximum(off, 1e-300)))
        done, weights = np.allclose(fresh, weights, rtol=1e-6), fresh
        if done:
            break
    return (alpha, 1 / slope) if slope > 0 else None


def _solve(columns: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Least squares with both coefficients at or above 0."""
    # Sizes and times differ by many powers of ten: scaled columns keep the solver exact.
    scale = np.linalg.norm(columns, axis=0)
    both = np.linalg.lstsq(columns / scale, target, rcond=None)[0] / scale
    if both.min() >= 0:
        return float(both[0]), float(both[1])
    alone = columns.T @ target / scale**2
    costs = [float(np.sum((columns[:, i] * alone[i] - target) ** 2)) for i in (0, 1)]
    return (float(alone[0]), 0.0) if costs[0] < costs[1] else (0.0, float(alone[1]))
