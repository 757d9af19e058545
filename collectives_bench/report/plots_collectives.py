"""Plots of collectives."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from ..schema import BenchReport, Collective
from ..sizes import label
from . import axes, units
from .series import Series, curves, is_pair

Curves = dict[Series, list[Collective]]
MAX_RANKS = 64
"""Ranks that the map of links names on its axes."""


def bandwidth(report: BenchReport) -> Figure | None:
    """Bus bandwidth over size, a panel for each operation, with the fitted lines dashed."""
    figure, shown = _by_operation(report)
    for axis, op, found in shown:
        for index, (series, points) in enumerate(found.items()):
            xs, ys = [c.bytes for c in points], [c.busbw for c in points]
            axis.plot(xs, ys, "o-", color=f"C{index}", markersize=3, label=series.setting)
            _fit(axis, report, series, points, f"C{index}", rate=True)
        axes.sizes(axis)
        axes.rates(axis, "B/s", "bus bandwidth")
        axes.finish(axis, op)
    return figure


def times(report: BenchReport) -> Figure | None:
    """Median time over size up to the 95th percentile (shaded), with the fitted lines dashed."""
    figure, shown = _by_operation(report)
    for axis, op, found in shown:
        for index, (series, points) in enumerate(found.items()):
            xs, color = [c.bytes for c in points], f"C{index}"
            middle, upper = [c.p50_s for c in points], [c.p95_s for c in points]
            axis.plot(xs, middle, "o-", color=color, markersize=3, label=series.setting)
            axis.fill_between(xs, middle, upper, color=color, alpha=0.2, linewidth=0)
            _fit(axis, report, series, points, color, rate=False)
        axes.sizes(axis)
        axes.seconds(axis, "time (median to p95)")
        axes.finish(axis, op)
    return figure


def per_rank(report: BenchReport) -> Figure | None:
    """Each rank's median and 95th percentile at the largest size of every operation."""
    largest = [
        max(found.values(), key=lambda points: (len(points[-1].per_rank), points[-1].bytes))[-1]
        for found in _operations(report.collectives).values()
    ]
    largest = [c for c in largest if len(c.per_rank) > 1]
    if not largest:
        return None
    figure, shown = axes.panels(len(largest))
    for axis, c in zip(shown, largest, strict=True):
        _ranks_panel(axis, c)
    return figure


def _ranks_panel(axis: Any, c: Collective) -> None:
    places = range(len(c.per_rank))
    middle = [times.p50_s for times in c.per_rank]
    above = [max(0.0, times.p95_s - times.p50_s) for times in c.per_rank]
    axis.errorbar(places, middle, yerr=[[0.0] * len(above), above], fmt="o", capsize=3)
    axis.axhline(median(middle), linestyle="--", linewidth=0.8, label="median of the ranks")
    step = max(1, len(c.per_rank) // 16)
    axis.set_xticks(places[::step], [str(times.rank) for times in c.per_rank[::step]])
    axis.set_xlabel("rank")
    axis.set_ylabel("time (median, up to p95)")
    axis.set_ylim(0, 1.2 * max(times.p95_s for times in c.per_rank))
    axis.yaxis.set_major_formatter(lambda y, _: units.seconds(y))
    axes.finish(axis, f"{c.op} {label(c.bytes)}, {c.group}")


def at_once(report: BenchReport) -> Figure | None:
    """What is left of the bandwidth when several groups run together, over size."""
    shared: dict[str, dict[str, list[tuple[int, float]]]] = {}
    alone = {_alike(c): c.busbw for c in report.collectives if c.at_once == 1 and not is_pair(c)}
    for c in report.collectives:
        base = alone.get(_alike(c))
        if c.at_once > 1 and base and not is_pair(c):
            line = shared.setdefault(c.op, {}).setdefault(_together(c), [])
            line.append((c.bytes, c.busbw / base))
    if not shared:
        return None
    figure, shown = axes.panels(len(shared))
    for axis, (op, lines) in zip(shown, shared.items(), strict=True):
        for name, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), "o-", markersize=3, label=name)
        axis.axhline(1.0, linestyle="--", linewidth=0.8)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("bandwidth / the same group's alone")
        axes.sizes(axis)
        axes.finish(axis, op)
    return figure


def _alike(c: Collective) -> tuple[Any, ...]:
    return c.op, c.dtype, c.in_place, tuple(c.ranks), c.load, c.bytes


def _together(c: Collective) -> str:
    return Series(c.op, c.dtype, c.in_place, c.group, len(c.ranks), c.at_once, c.load).setting


def link_map(report: BenchReport) -> Figure | None:
    """Bandwidth between every pair of ranks that was tested, at the largest size."""
    tested = [c for c in report.collectives if is_pair(c)]
    ranks = sorted({rank for c in tested for rank in c.ranks})
    if len(ranks) < 3:
        return None
    largest = max(c.bytes for c in tested)
    figure, (axis,) = axes.panels(1)
    grid = [[float("nan")] * len(ranks) for _ in ranks]
    for c in tested:
        if c.bytes == largest:
            one, other = (ranks.index(rank) for rank in c.ranks)
            grid[one][other] = grid[other][one] = c.busbw
    image = axis.imshow(grid, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axis, format=lambda y, _: units.rate(y))
    step = max(1, len(ranks) // MAX_RANKS)
    for ticks in (axis.set_xticks, axis.set_yticks):
        ticks(range(0, len(ranks), step), [str(rank) for rank in ranks[::step]], fontsize=7)
    axis.set_title(f"send/recv between two ranks, {label(largest)}", fontsize=10)
    return figure


def _operations(measured: Iterable[Collective]) -> dict[str, Curves]:
    found: dict[str, Curves] = {}
    for series, points in curves(c for c in measured if not is_pair(c)).items():
        found.setdefault(series.op, {})[series] = points
    return found


def _by_operation(report: BenchReport) -> tuple[Figure | None, list[tuple[Any, str, Curves]]]:
    """A panel for each operation that moves bytes."""
    moving = [c for c in report.collectives if c.bytes and c.busbw]
    found = _operations(moving)
    if not found:
        return None, []
    figure, shown = axes.panels(len(found))
    return figure, [(axis, *entry) for axis, entry in zip(shown, found.items(), strict=True)]


def _fit(
    axis: Any, report: BenchReport, series: Series, points: list[Collective], color: str, rate: bool
) -> None:
    for fit in report.analysis.get("fits", ()):
        if Series(*(fit[name] for name in Series._fields)) == series:
            xs = [c.bytes for c in points]
            line = [fit["alpha_s"] + x / fit["beta"] for x in xs]
            ys = [fit["factor"] * x / s for x, s in zip(xs, line, strict=True)] if rate else line
            axis.plot(xs, ys, "--", color=color, linewidth=0.9)
