"""A run under faults as tables and a picture."""

import json
from pathlib import Path
from typing import Any

import matplotlib
from rich.table import Table

from .recovery import PHASES, Recovery, Report, phase_summary

REPORT, PICTURE = "report.json", "chaos.png"
COLOURS = {"detect_s": "C3", "regroup_s": "C1", "load_s": "C4", "first_step_s": "C0"}
NAMES = {phase: phase.removesuffix("_s").replace("_", " ") for phase in PHASES}
NAMES["load_s"] = "start, load"


def write(report: Report, folder: Path) -> list[Path]:
    """Leave the report as JSON and as a picture in `folder`; returns the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT
    path.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    return [path, draw([report], folder / PICTURE)]


def fault_table(report: Report) -> Table:
    """A row for each fault."""
    table = Table("fault", "at step", "rank", *(f"{n} (s)" for n in NAMES.values()), "steps lost")
    table.add_column("overcome")
    for recovery in report.recoveries:
        fault = recovery.fault
        place = fault.node if fault.rank is None else str(fault.rank)
        phases = (_seconds(getattr(recovery, phase)) for phase in PHASES)
        row = (fault.kind, str(fault.step), place, *phases, str(recovery.steps_lost))
        table.add_row(*row, "yes" if recovery.overcome else "NO")
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def phase_table(recoveries: list[Recovery]) -> Table:
    """Median, 95th percentile and largest of each phase."""
    table = Table("phase", "faults", "median (s)", "p95 (s)", "max (s)")
    for phase, found in phase_summary(recoveries).items():
        numbers = (f"{found[key]:.2f}" for key in ("median", "p95", "max"))
        table.add_row(NAMES[phase], str(found["count"]), *numbers)
    return table


def verdict(report: Report) -> str:
    """The run in one line."""
    overcome = sum(recovery.overcome for recovery in report.recoveries)
    parts = [
        f"{overcome} of {len(report.recoveries)} faults overcome, {report.restarts} restarts",
        f"exit code {report.exit_code} after step {report.steps}",
        f"goodput {report.goodput:.1%} of {report.wall_s:.0f} s",
    ]
    if report.samples:
        parts.append(
            f"samples lost {report.samples.lost}, repeated {report.samples.repeated}, "
            f"passed over {report.samples.passed_over}"
        )
    if report.not_reached:
        parts.append(f"{report.not_reached} faults not reached: give the run more steps")
    return "; ".join(parts)


def draw(reports: list[Report], path: Path) -> Path:
    """Write the picture: a time line for each run, and how the phases' times are distributed."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 3.5 + 0.5 * len(reports)
    figure, axes = pyplot.subplots(2, 1, figsize=(11, 2.5 + height), layout="constrained")
    try:
        for row, report in enumerate(reports):
            _time_line(axes[0], row, report)
        _label(axes[0], len(reports))
        _distribution(axes[1], [r for report in reports for r in report.recoveries])
        figure.savefig(path, dpi=110)
    finally:
        pyplot.close(figure)
    return path


def _time_line(axis: Any, row: int, report: Report) -> None:
    start = min((event["time"] for event in report.events), default=0.0)
    axis.barh(row, report.wall_s, height=0.5, color="0.85")
    for recovery in report.recoveries:
        place = recovery.fault.time - start
        axis.text(place, row + 0.3, recovery.fault.kind, rotation=60, fontsize=6, va="bottom")
        axis.plot(place, row, "kv", markersize=3)
        if recovery.down_s is None:
            continue
        for phase, colour in COLOURS.items():
            seconds = getattr(recovery, phase) or 0.0
            axis.barh(row, seconds, left=place, height=0.5, color=colour)
            place += seconds


def _label(axis: Any, rows: int) -> None:
    for phase, colour in COLOURS.items():
        axis.barh(0, 0, color=colour, label=NAMES[phase])
    axis.set_ylim(-0.6, rows + 0.4)
    axis.set_yticks(range(rows))
    axis.set_ylabel("run")
    axis.set_xlabel("seconds since the start (grey: training)")
    axis.legend(fontsize=7, loc="lower right", ncols=4)


def _distribution(axis: Any, recoveries: list[Recovery]) -> None:
    for place, phase in enumerate(PHASES):
        values = [v for r in recoveries if (v := getattr(r, phase)) is not None]
        if values:
            axis.boxplot(values, positions=[place], widths=0.4, showfliers=False)
            axis.plot([place + 0.3] * len(values), values, ".", color=COLOURS.get(phase, "k"))
    axis.set_xticks(range(len(PHASES)), [NAMES[phase] for phase in PHASES])
    axis.set_ylabel("seconds")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", alpha=0.3)
