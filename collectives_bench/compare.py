"""Two reports against each other: what became slower, for a person and for CI.

A time counts as changed when the medians differ by more than the threshold and by more than either
run's own spread (p95 - p50), so that noise alone fails no build.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

from .. import UserError
from . import THRESHOLD
from .schema import BenchReport, Collective, Hardware
from .sizes import label

Status = Literal["same", "faster", "slower", "wrong", "new", "missing"]
FAILING = ("slower", "wrong", "missing")


@dataclass(frozen=True)
class Row:
    """One measurement in both runs: `ratio` is the new median time over the old one."""

    what: str
    bytes: int
    old_s: float | None
    new_s: float | None
    ratio: float | None
    old_rate: float | None
    new_rate: float | None
    status: Status


@dataclass(frozen=True)
class Comparison:
    """All rows, what else differs between the runs, and the verdict with CI's exit code."""

    rows: list[Row]
    notes: list[str]
    verdict: str
    exit_code: int


def compare(old: BenchReport, new: BenchReport, threshold: float = THRESHOLD) -> Comparison:
    """Compare `new` with the baseline `old`; anything slower, wrong or missing fails.

    Rows that fail come first, the slowest foremost. UserError where the reports share nothing.
    """
    if not 0 < threshold < 10:
        raise UserError(
            f"threshold: {threshold} is no share of a time; give one above 0, such as {THRESHOLD}"
        )
    before, after = _measured(old), _measured(new)
    if not before.keys() & after.keys():
        raise UserError(
            f"baseline: none of its {len(before)} measurements is among the {len(after)} of this "
            "run; measure the same operations and sizes, or choose another baseline"
        )
    keys = [*before, *(key for key in after if key not in before)]
    rows = [_row(before.get(key), after.get(key), threshold) for key in keys]
    rows.sort(key=lambda row: (row.status not in FAILING, -(row.ratio or 0)))
    counts = {s: sum(row.status == s for row in rows) for s in (*FAILING, "faster", "new", "same")}
    failed = any(counts[status] for status in FAILING)
    summary = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    verdict = f"{'FAIL' if failed else 'PASS'} at {threshold:.0%}: {summary}"
    return Comparison(rows, _notes(old, new), verdict, int(failed))


Measured = Collective | Hardware


def _measured(report: BenchReport) -> Mapping[Hashable, Measured]:
    found: dict[Hashable, Measured] = {}
    for c in report.collectives:
        where = (c.group, *c.ranks, c.at_once)
        found[c.op, c.dtype, c.in_place, c.load, c.bytes, where] = c
    for h in report.hardware:
        found[h.bench, h.kind, h.dtype, h.rank, *sorted(h.shape.items())] = h
    return found


def _row(old: Measured | None, new: Measured | None, threshold: float) -> Row:
    known = new or old
    assert known is not None
    what, size = _describe(known)
    ratio = new.p50_s / old.p50_s if old and new and old.p50_s > 0 else None
    return Row(
        what,
        size,
        old.p50_s if old else None,
        new.p50_s if new else None,
        ratio,
        _rate(old),
        _rate(new),
        _status(old, new, threshold),
    )


def _status(old: Measured | None, new: Measured | None, threshold: float) -> Status:
    if new is None:
        return "missing"
    if isinstance(new, Collective) and new.wrong:
        return "wrong"
    if old is None:
        return "new"
    change = new.p50_s - old.p50_s
    spread = max(old.p95_s - old.p50_s, new.p95_s - new.p50_s)
    if abs(change) <= spread or abs(change) <= threshold * old.p50_s:
        return "same"
    return "slower" if change > 0 else "faster"


def _rate(m: Measured | None) -> float | None:
    if m is None:
        return None
    return m.busbw if isinstance(m, Collective) else m.rate


def _describe(m: Measured) -> tuple[str, int]:
    if isinstance(m, Hardware):
        shape = " ".join(f"{name}={value}" for name, value in m.shape.items())
        return f"{m.bench} {m.kind} {m.dtype} {shape} rank {m.rank}", m.shape.get("bytes", 0)
    place = "in place" if m.in_place else "out of place"
    where = f"{m.group} [{_ranks(m.ranks)}]" + (f" x{m.at_once}" if m.at_once > 1 else "")
    load = f" {m.load}" if m.load else ""
    return f"{m.op}{load} {m.dtype} {label(m.bytes)} {place}, {where}", m.bytes


def _ranks(ranks: list[int]) -> str:
    if len(ranks) > 2 and ranks == [*range(ranks[0], ranks[-1] + 1)]:
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks))


def _notes(old: BenchReport, new: BenchReport) -> list[str]:
    """What makes the runs hard to compare."""
    pairs = {
        "backend": (old.backend, new.backend),
        "ranks": (old.world_size, new.world_size),
        "devices": tuple(sorted({h.device for h in r.hosts}) for r in (old, new)),
        "ended": (old.ended, new.ended),
    }
    pairs |= {
        f"version of {name}": (old.versions.get(name), new.versions.get(name))
        for name in sorted(old.versions.keys() | new.versions.keys())
    }
    return [
        f"{name}: {was} in the baseline, {now} now"
        for name, (was, now) in pairs.items()
        if was != now
    ]
