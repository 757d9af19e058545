"""The measurements as CSV, one line each."""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..schema import BenchReport, Collective, Hardware

COLLECTIVE_COLUMNS = [f.name for f in fields(Collective) if f.name != "per_rank"]
COLLECTIVE_COLUMNS += ["slowest_rank", "slowest_rank_p50_s"]
HARDWARE_COLUMNS = [f.name for f in fields(Hardware)]


def write(report: BenchReport, path: Path) -> None:
    """Write the report's measurements to `path`: seconds, bytes, bytes or FLOP a second.

    Ranks are joined by spaces, a shape is `M=1024 N=1024 K=1024`; nothing stands where a value
    has no meaning. A spreadsheet reads text that begins with `=` as a formula, so text is quoted
    against that.
    """
    rows: list[dict[str, Any]]
    if report.kind == "collectives":
        columns, rows = COLLECTIVE_COLUMNS, [_collective(c) for c in report.collectives]
    else:
        columns, rows = HARDWARE_COLUMNS, [_hardware(h) for h in report.hardware]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: _safe(value) for key, value in row.items()} for row in rows)


def _collective(c: Collective) -> dict[str, Any]:
    row = {key: value for key, value in asdict(c).items() if key != "per_rank"}
    slowest = max(c.per_rank, key=lambda times: times.p50_s, default=None)
    row["ranks"] = " ".join(map(str, c.ranks))
    row["in_place"] = int(c.in_place)
    row["slowest_rank"] = slowest and slowest.rank
    row["slowest_rank_p50_s"] = slowest and slowest.p50_s
    return row


def _hardware(h: Hardware) -> dict[str, Any]:
    shape = " ".join(f"{name}={size}" for name, size in h.shape.items())
    return {**asdict(h), "shape": shape}


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value
