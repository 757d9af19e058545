"""Plots of a device's measurements."""

from statistics import median
from typing import Any

from matplotlib.figure import Figure

from ..hardware import PROBES
from ..hardware.probe import Curve, ProbeKind
from ..schema import BenchReport, Hardware
from . import axes

Line = list[tuple[float, float]]


def curves() -> dict[str, list[str]]:
    """The kinds of measurement by the name of the curve that they share."""
    found: dict[str, list[str]] = {}
    for bench in PROBES:
        found.setdefault(PROBES[bench].curve.name, []).append(bench)
    return found


def curve(report: BenchReport, benches: list[str]) -> Figure | None:
    """The rates of one curve's kinds over its axis."""
    lines: dict[str, Line] = {}
    for bench in benches:
        prefix = f"{bench} " if len(benches) > 1 else ""
        mine = _lines(report, bench, PROBES[bench])
        lines |= {f"{prefix}{name}": line for name, line in mine.items()}
    if not lines:
        return None
    form: Curve = PROBES[benches[0]].curve
    unit = next(h.unit for h in report.hardware if h.bench in benches)
    figure, (axis,) = axes.panels(1)
    for name, line in lines.items():
        # Products of many shapes lie beside each other on an axis of counts: no line joins them.
        style = "o" if form.axis == "count" else "o-"
        axis.plot(*zip(*line, strict=True), style, markersize=3, label=name)
    _place(axis, form)
    axes.rates(axis, unit, "rate")
    axes.finish(axis, form.title)
    return figure


def _place(axis: Any, form: Curve) -> None:
    if form.axis == "bytes":
        axes.sizes(axis)
    elif form.axis == "count":
        axes.counts(axis, form.label)
        return
    else:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
    axis.set_xlabel(form.label)


def devices(report: BenchReport) -> Figure | None:
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


def _lines(report: BenchReport, bench: str, kind: ProbeKind) -> dict[str, Line]:
    """A line for each sort and dtype; where several ranks measured, the ranks' median."""
    found: dict[str, dict[float, list[float]]] = {}
    for h in report.hardware:
        if h.bench == bench:
            line = found.setdefault(f"{h.kind} {h.dtype}", {})
            line.setdefault(_rounded(kind.curve.x(h)), []).append(h.rate)
    return {
        name: sorted((x, median(rates)) for x, rates in points.items())
        for name, points in found.items()
    }


def _rounded(value: float) -> float:
    # FLOPs come out of a rate and a time: what only rounding tells apart is one place.
    return float(f"{value:.6g}")
