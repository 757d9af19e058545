"""Plots of a device's measurements."""

from collections.abc import Callable
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from ..schema import Hardware, Report
from . import axes

Line = list[tuple[float, float]]


def memory(report: Report) -> Figure | None:
    """Memory bandwidth over the buffer's size, for each kind of access."""
    return _over_size(report, "memory", "memory bandwidth")


def copies(report: Report) -> Figure | None:
    """Copies between host and device over their size."""
    return _over_size(report, "copy", "copies between host and device")


def gemm(report: Report) -> Figure | None:
    """FLOP/s over the FLOPs of one product: where a GEMM is large enough."""
    found: dict[str, Line] = {}
    for bench in ("gemm", "experts"):
        lines = _lines(report, bench, lambda h: h.rate * h.p50_s)
        found |= {f"{bench} {name}": line for name, line in lines.items()}
    if not found:
        return None
    figure, (axis,) = axes.panels(1)
    for name, line in found.items():
        axis.plot(*zip(*line, strict=True), "o", markersize=4, label=name)
    axes.counts(axis, "FLOPs of one call")
    axes.rates(axis, "FLOP/s", "rate")
    axes.finish(axis, "matrix products")
    return figure


def attention(report: Report) -> Figure | None:
    """FLOP/s of causal attention over the length of the sequence."""
    lines = _lines(report, "attention", lambda h: float(h.shape["seq"]))
    if not lines:
        return None
    figure, (axis,) = axes.panels(1)
    for name, line in lines.items():
        axis.plot(*zip(*line, strict=True), "o-", markersize=3, label=name)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
    axis.set_xlabel("sequence length")
    axes.rates(axis, "FLOP/s", "rate")
    axes.finish(axis, "attention")
    return figure


def devices(report: Report) -> Figure | None:
    """Each rank's rates over the ranks' median: a device that falls behind stands out."""
    groups: dict[tuple[Any, ...], list[Hardware]] = {}
    for h in report.hardware:
        key = h.bench, h.kind, h.dtype, tuple(sorted(h.shape.items()))
        groups.setdefault(key, []).append(h)
    shares: dict[int, list[float]] = {}
    for group in groups.values():
        middle = median(h.rate for h in group)
        for h in group:
            shares.setdefault(h.rank, []).append(h.rate / middle)
    if len(shares) < 2:
        return None
    figure, (axis,) = axes.panels(1)
    ranks = sorted(shares)
    axis.boxplot([shares[rank] for rank in ranks], tick_labels=[str(rank) for rank in ranks])
    axis.set_xlabel("rank")
    axis.set_ylabel("rate / the ranks' median")
    axes.finish(axis, "devices against each other")
    return figure


def _over_size(report: Report, bench: str, title: str) -> Figure | None:
    lines = _lines(report, bench, lambda h: float(h.shape["bytes"]))
    if not lines:
        return None
    figure, (axis,) = axes.panels(1)
    for name, line in lines.items():
        axis.plot(*zip(*line, strict=True), "o-", markersize=3, label=name)
    axes.sizes(axis)
    axes.rates(axis, "B/s", "rate")
    axes.finish(axis, title)
    return figure


def _lines(report: Report, bench: str, place: Callable[[Hardware], float]) -> dict[str, Line]:
    """A line for each kind and dtype; where several ranks measured, the ranks' median."""
    found: dict[str, dict[float, list[float]]] = {}
    for h in report.hardware:
        if h.bench == bench:
            name = f"{h.kind} {h.dtype}"
            found.setdefault(name, {}).setdefault(_rounded(place(h)), []).append(h.rate)
    return {
        name: sorted((x, median(rates)) for x, rates in points.items())
        for name, points in found.items()
    }


def _rounded(value: float) -> float:
    # FLOPs come out of a rate and a time: what only rounding tells apart is one place.
    return float(f"{value:.6g}")
