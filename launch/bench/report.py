"""From an ended benchmark to its files, its findings and its exit code."""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from ... import UserError
from ...collectives_bench import THRESHOLD
from ...collectives_bench.analyse import analyse
from ...collectives_bench.compare import Comparison, compare
from ...collectives_bench.hardware.summary import caches, summarise
from ...collectives_bench.report import csv, html, plots, tables
from ...collectives_bench.schema import BenchReport
from .config import COMPLETE, REPORT

TABLE = "measurements.csv"
PAGE = "report.html"


def prepare(folder: Path) -> None:
    """Make the output folder. UserError where files cannot be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"output: {folder}: {reason}; give a folder that this user can write"
        ) from None


def finish(
    report: BenchReport,
    folder: Path,
    console: Console,
    baseline: BenchReport | None = None,
    threshold: float = THRESHOLD,
) -> int:
    """Analyse, write every file, print the summary; returns the exit code.

    1 for a run that did not complete, a wrong result, or a comparison that fails. UserError, after
    all that, where the baseline cannot be compared.
    """
    problem, compared = None, None
    try:
        compared = analyse_into(report, baseline, threshold)
    except UserError as error:
        # A baseline of something else costs the comparison only.
        problem = error
    report.write(folder / REPORT)
    paths = draw(report, folder)
    for grid in tables.summary(report):
        console.print(grid.to_rich())
    names = ", ".join(path.name for path in paths)
    say(console, f"{folder / REPORT}; beside it {names}")
    if problem:
        raise problem
    return verdict(report, compared)


def analyse_into(
    report: BenchReport, baseline: BenchReport | None, threshold: float
) -> Comparison | None:
    """Fill `report.analysis`; the comparison, where there is a baseline for a complete run."""
    if report.kind == "collectives":
        report.analysis = analyse(report)
    else:
        report.analysis = {"hardware": summarise(report.hardware, caches(report))}
    if baseline is None or report.ended != COMPLETE:
        return None
    compared = compare(baseline, report, threshold)
    report.analysis["comparison"] = asdict(compared)
    return compared


def kept_comparison(report: BenchReport, source: Path) -> Comparison | None:
    """The comparison that a report already holds. UserError where it is none."""
    found = report.analysis.get("comparison")
    if found is None:
        return None
    try:
        return TypeAdapter(Comparison).validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("analysis", "comparison", *first["loc"])))
        raise UserError(f"{source}: {where}: {first['msg']}; compare again") from None


def draw(report: BenchReport, folder: Path) -> list[Path]:
    """Write the CSV, the plots and the page beside the JSON."""
    csv.write(report, folder / TABLE)
    html.write(report, folder / PAGE)
    return [folder / PAGE, folder / TABLE, *plots.save(report, folder)]


def verdict(report: BenchReport, compared: Comparison | None) -> int:
    """The exit code, with what it rests on on stderr."""
    wrong = sum(c.wrong or 0 for c in report.collectives)
    failures = [report.ended] if report.ended != COMPLETE else []
    failures += [f"{wrong} wrong elements: see the column `wrong`"] if wrong else []
    failures += [compared.verdict] if compared and compared.exit_code else []
    for failure in failures:
        print(f"failed: {failure.removeprefix('failed ')}", file=sys.stderr)
    return 1 if failures else 0


def say(console: Console, text: str) -> None:
    """A line as it is: a path may hold brackets, which are no markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
