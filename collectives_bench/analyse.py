"""Everything that a report's measurements say, as JSON values for `BenchReport.analysis`."""

from dataclasses import asdict
from typing import Any

from .fit import Fit, fit_report
from .laws import name_laws
from .schema import BenchReport
from .suspects import find

POOR = 0.5
"""A line that misses a size by more than this share gets a note."""


def analyse(report: BenchReport) -> dict[str, Any]:
    """Fits, laws and suspects of a report of collectives, finished or not."""
    fits = fit_report(report)
    return {
        "fits": [_as_json(f) for f in fits],
        "laws": [asdict(law) for law in name_laws(report, fits)],
        "suspects": [asdict(s) for s in find(report)],
        "notes": [_note(f) for f in fits if f.residual_worst > POOR],
    }


def _as_json(f: Fit) -> dict[str, Any]:
    return {
        **asdict(f),
        "points": [list(point) for point in f.points],
        "within_host": f.within_host,
        "busbw": f.busbw,
        "saturation_bytes": f.saturation(),
        "measured_saturation_bytes": f.measured_saturation(),
    }


def _note(f: Fit) -> str:
    return (
        f"{f.op} {f.dtype}, {f.group} of {f.size}: no single line (off by {f.residual_worst:.0%} "
        "at worst): the protocol changes with the size; read the measured points"
    )
