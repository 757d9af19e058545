"""The tables of a report."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from ..hardware import memory
from ..hardware.summary import caches
from ..schema import BenchReport, Collective, Hardware
from ..sizes import label
from .grid import Cell, TextTable
from .series import Series, curves, is_pair
from .units import rate, seconds

NOTHING = Cell("-")
MAX_ROWS = 40
"""Of a table on a terminal."""
BYTES = ("bytes", "moved")
"""Parts of a shape that count bytes."""


def summary(report: BenchReport) -> list[TextTable]:
    """What fits a terminal: a line for each series, and what the analysis found."""
    grids = [_series(report), _hardware_best(report), _working_sets(report), skipped(report)]
    grids += findings(report)
    return [_short(grid) for grid in grids if grid.rows]


def findings(report: BenchReport) -> list[TextTable]:
    """Slow ranks, links and devices, bandwidth laws, the comparison with an earlier run."""
    grids = [_suspects(report), _slow_devices(report), _laws(report), *_comparison(report)]
    return [grid for grid in [*grids, _notes(report)] if grid.rows]


def details(report: BenchReport) -> list[TextTable]:
    """Every measurement, with the series' bests and fits before."""
    grids = [_series(report), _hardware_best(report), _working_sets(report), _fits(report)]
    grids.append(skipped(report))
    grids += [_collectives(report), _hardware(report)]
    return [grid for grid in grids if grid.rows]


def _short(grid: TextTable) -> TextTable:
    left = len(grid.rows) - MAX_ROWS
    if left <= 0:
        return grid
    title = f"{grid.title} (and {left} more: see report.html)"
    return TextTable(title, grid.columns, grid.rows[:MAX_ROWS])


def rows_of(report: BenchReport, name: str) -> list[Any]:
    """One part of the analysis; empty where it was not made."""
    return list(report.analysis.get(name, ()))


def size(count: float | None) -> Cell:
    """A cell for bytes."""
    return Cell(label(count), float(count)) if count else NOTHING


def time(s: float | None) -> Cell:
    """A cell for seconds."""
    return NOTHING if s is None else Cell(seconds(s), s)


def speed(per_s: float | None, unit: str = "B/s") -> Cell:
    """A cell for a rate."""
    return Cell(rate(per_s, unit), per_s) if per_s else NOTHING


def number(value: float, form: str = "d") -> Cell:
    """A cell for a plain number."""
    return Cell(format(value, form), float(value))


def wrong(count: int | None) -> Cell:
    """A cell for a number of wrong elements; `-` where none was checked."""
    if count is None:
        return NOTHING
    return Cell(str(count), float(count), "bad" if count else "good")


def _series(report: BenchReport) -> TextTable:
    grid = TextTable(
        "operations: from the smallest size's time to the best bus bandwidth",
        ("op", "setting", "smallest", "p50", "largest", "p50 ", "best busbw", "at", "wrong"),
    )
    for series, points in curves(c for c in report.collectives if not is_pair(c)).items():
        first, last, best = points[0], points[-1], max(points, key=lambda c: c.busbw)
        checked = [c.wrong for c in points if c.wrong is not None]
        grid.add(
            *(series.op, series.setting),
            *(size(first.bytes), time(first.p50_s), size(last.bytes), time(last.p50_s)),
            *(speed(best.busbw), size(best.bytes), wrong(sum(checked) if checked else None)),
        )
    return grid


def _collectives(report: BenchReport) -> TextTable:
    grid = TextTable(
        "every measurement",
        ("op", "setting", "ranks", "size", "algbw", "busbw", "mean", "p50", "p95", "max", "wrong"),
    )
    for c in report.collectives:
        grid.add(*_collective_cells(c))
    return grid


def _collective_cells(c: Collective) -> list[Cell | str]:
    setting = Series(c.op, c.dtype, c.in_place, c.group, len(c.ranks), c.at_once, c.load).setting
    rates = [speed(c.algbw), speed(c.busbw)]
    times = [time(s) for s in (c.mean_s, c.p50_s, c.p95_s, c.max_s)]
    return [c.op, setting, ranks(c.ranks), size(c.bytes), *rates, *times, wrong(c.wrong)]


def ranks(found: list[int]) -> str:
    """Ranks with runs cut short: `0-7 16`."""
    parts: list[list[int]] = []
    for rank in found:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return " ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _fits(report: BenchReport) -> TextTable:
    grid = TextTable(
        "time = alpha + bytes / beta",
        (
            "op",
            "setting",
            "alpha",
            "beta",
            "busbw",
            "residual %",
            "worst %",
            "90% from",
            "measured",
        ),
    )
    for fit in rows_of(report, "fits"):
        series = Series(*(fit[name] for name in Series._fields))
        grid.add(
            *(series.op, series.setting, time(fit["alpha_s"]), speed(fit["beta"])),
            speed(fit["beta"] * fit["factor"]),
            *(number(100 * fit[f"residual_{name}"], ".1f") for name in ("median", "worst")),
            *(size(fit["saturation_bytes"]), size(fit["measured_saturation_bytes"])),
        )
    return grid


def _suspects(report: BenchReport) -> TextTable:
    grid = TextTable("slow ranks and links", ("kind", "ranks", "times slower", "what was seen"))
    for found in rows_of(report, "suspects"):
        kind = Cell(found["kind"], tone="bad")
        grid.add(kind, ranks(found["ranks"]), number(found["slowdown"], ".2f"), found["text"])
    return grid


def _slow_devices(report: BenchReport) -> TextTable:
    grid = TextTable("slow devices", ("rank", "share of the ranks' median"))
    for found in report.analysis.get("hardware", {}).get("slow", ()):
        grid.add(number(found["rank"]), Cell(f"{found['share']:.3f}", found["share"], "bad"))
    return grid


def _notes(report: BenchReport) -> TextTable:
    grid = TextTable("notes", ("note",))
    for note in [*rows_of(report, "notes"), *report.analysis.get("hardware", {}).get("notes", ())]:
        grid.add(str(note))
    return grid


def _laws(report: BenchReport) -> TextTable:
    grid = TextTable(
        "bus bandwidth a rank over the ranks of a node", ("op", "counts", "law", "in words")
    )
    for law in rows_of(report, "laws"):
        counts = " ".join(map(str, law["counts"]))
        grid.add(f"{law['op']} {law['dtype']}", counts, law["best"], law["text"])
    return grid


_VERDICTS = {"slower": "bad", "wrong": "bad", "missing": "bad", "faster": "good"}


def _comparison(report: BenchReport) -> list[TextTable]:
    found = report.analysis.get("comparison")
    return [comparison(found)] if found else []


def comparison(found: Mapping[str, Any]) -> TextTable:
    """A comparison's rows (`compare.Comparison` as a dict), as ordered there."""
    columns = "what", "size", "before", "now", "now / before", "verdict"
    grid = TextTable(f"against the baseline: {found['verdict']}", columns)
    for row in found["rows"]:
        ratio = NOTHING if row["ratio"] is None else number(row["ratio"], ".3f")
        status = Cell(row["status"], tone=_VERDICTS.get(row["status"], ""))  # type: ignore[arg-type]
        grid.add(
            row["what"], size(row["bytes"]), time(row["old_s"]), time(row["new_s"]), ratio, status
        )
    return grid


def skipped(report: BenchReport) -> TextTable:
    """What was not measured."""
    grid = TextTable("not measured", ("what", "size", "why"))
    for skip in report.skipped:
        grid.add(skip.what, size(skip.bytes), skip.reason)
    return grid


def _hardware_best(report: BenchReport) -> TextTable:
    """The best rate of every kind, on the slowest and the fastest rank; of memory, where the
    working set is past the caches."""
    grid = TextTable(
        "device: best rates", ("bench", "kind", "dtype", "best", "shape", "slowest rank")
    )
    known = caches(report)
    rows = [h for h in report.hardware if _lasting(h, known.get(h.rank, 0))]
    kinds = dict.fromkeys((h.bench, h.kind, h.dtype) for h in rows)
    for kind in kinds:
        mine = [h for h in rows if (h.bench, h.kind, h.dtype) == kind]
        best = max(mine, key=lambda h: h.rate)
        tops = [max(h.rate for h in mine if h.rank == rank) for rank in {h.rank for h in mine}]
        grid.add(
            *kind, speed(best.rate, best.unit), shape_text(best.shape), speed(min(tops), best.unit)
        )
    return grid


def _lasting(row: Hardware, cache: int) -> bool:
    return row.bench != "memory" or memory.place(row, cache) in ("memory", "")


def _working_sets(report: BenchReport) -> TextTable:
    """Memory rates by the size of the working set: the ranks' median, and the slowest's."""
    grid = TextTable(
        "memory: rates by working set", ("kind", "working set", "in", "rate", "slowest")
    )
    known, found = caches(report), dict[tuple[str, int], list[Hardware]]()
    for h in report.hardware:
        if h.bench == "memory":
            found.setdefault((h.kind, h.shape["moved"]), []).append(h)
    for (kind, moved), rows in found.items():
        place = memory.place(rows[0], known.get(rows[0].rank, 0)) or "cache not known"
        rates = [row.rate for row in rows]
        middle, least = speed(median(rates)), speed(min(rates))
        grid.add(kind, size(moved), place, middle, least)
    return grid


def _hardware(report: BenchReport) -> TextTable:
    columns = "bench", "kind", "dtype", "shape", "rank", "rate", "p50", "p95", "max"
    grid = TextTable("every measurement", columns)
    for h in report.hardware:
        times = [time(s) for s in (h.p50_s, h.p95_s, h.max_s)]
        grid.add(
            h.bench,
            h.kind,
            h.dtype,
            shape_text(h.shape),
            number(h.rank),
            speed(h.rate, h.unit),
            *times,
        )
    return grid


def shape_text(sizes: Mapping[str, int]) -> str:
    """Names and sizes in words."""
    return " ".join(
        f"{name} {label(value) if name in BYTES else value}" for name, value in sizes.items()
    )
