"""JSON kept while a run goes on, CSV, tables, plots, units."""

import csv as csv_reader
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bench_reports
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.console import Console

from moelstrom.collectives_bench.report import csv, plots, tables, units
from moelstrom.collectives_bench.report.collect import SAVE_INTERVAL_S, Collector
from moelstrom.collectives_bench.report.grid import Cell, TextTable
from moelstrom.collectives_bench.report.series import curves
from moelstrom.collectives_bench.schema import BenchReport, Skip, read


def empty(report: BenchReport) -> BenchReport:
    return replace(report, collectives=[], hardware=[], skipped=[], ended="running")


@pytest.mark.parametrize("whole", [bench_reports.collectives(), bench_reports.hardware()])
def test_events_make_the_report_again(whole: BenchReport, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    first = replace(empty(whole), backend="", world_size=0, hosts=[], versions={})
    collector = Collector(first, path)
    collector({"kind": "header", "report": asdict(empty(whole))})
    values: list[Any] = [*whole.collectives, *whole.hardware]
    for value in values:
        collector({"kind": "step", "step": 0, "total": 9, "what": "something"})
        collector({"kind": "measurement", "value": asdict(value)})
        collector({"kind": "log", "line": "a worker's own words"})
    for skip in whole.skipped:
        collector({"kind": "skip", "value": asdict(skip)})
    assert collector.end("complete") == whole == read(path)


def test_the_file_follows_the_run(tmp_path: Path) -> None:
    """What a killed launcher leaves is at most the interval old."""
    whole, path, now = bench_reports.collectives(), tmp_path / "report.json", 100.0
    collector = Collector(empty(whole), path, clock=lambda: now)
    assert not path.exists()  # An earlier run's file stays until this one has begun.
    collector({"kind": "header", "report": asdict(empty(whole))})
    assert read(path).ended == "running" and read(path).hosts == whole.hosts
    collector({"kind": "measurement", "value": asdict(whole.collectives[0])})
    assert read(path).collectives == []
    now += SAVE_INTERVAL_S
    collector({"kind": "measurement", "value": asdict(whole.collectives[1])})
    assert read(path).collectives == whole.collectives[:2]
    collector({"kind": "step", "step": 2, "total": 9, "what": "all_reduce fp32 1 MiB"})
    assert collector.at == "all_reduce fp32 1 MiB"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv_reader.DictReader(file))


def test_csv_has_a_line_for_each_measurement(tmp_path: Path) -> None:
    report, path = bench_reports.collectives(), tmp_path / "m.csv"
    csv.write(report, path)
    found = rows(path)
    assert len(found) == len(report.collectives)
    for row, c in zip(found, report.collectives, strict=True):
        assert float(row["busbw"]) == c.busbw and int(row["bytes"]) == c.bytes
        assert row["ranks"] == " ".join(map(str, c.ranks)) and row["load"] == (c.load or "")
        assert int(row["slowest_rank"]) == c.ranks[-1]
    csv.write(bench_reports.hardware(), path)
    assert [row["shape"] for row in rows(path)][2] == "M=256 N=256 K=256"


def test_csv_runs_no_formula(tmp_path: Path) -> None:
    report, path = bench_reports.collectives(), tmp_path / "m.csv"
    report.collectives = [bench_reports.collective("all_reduce", 4, group="=cmd()")]
    csv.write(report, path)
    assert rows(path)[0]["group"] == "'=cmd()"


def test_a_curve_is_one_setting_by_size() -> None:
    report = bench_reports.collectives()
    found = curves(reversed([c for c in report.collectives if c.op != "send_recv"]))
    assert len(found) == 5
    for series, points in found.items():
        assert [c.bytes for c in points] == bench_reports.SIZES
        assert {(c.op, c.group, c.at_once, c.load, c.in_place) for c in points} == {
            (series.op, series.group, series.at_once, series.load, series.in_place)
        }
    assert len({(s.op, s.setting) for s in found}) == 5


def test_the_slowest_of_groups_at_once_stands_for_them() -> None:
    report = bench_reports.collectives()
    pair = {"group": "node", "at_once": 2}
    report.collectives = [
        bench_reports.collective("all_reduce", 2**20, ranks=ranks, slow=slow, **pair)
        for ranks, slow in (([0, 1], 1.0), ([2, 3], 2.0), ([4, 5], 1.5))
    ]
    ((points,),) = (curves(report.collectives).values(),)
    assert [c.ranks for c in points] == [[2, 3]]


def test_a_long_table_is_cut_on_a_terminal() -> None:
    report = bench_reports.collectives()
    report.skipped = [Skip(f"what {i}", 1, "why") for i in range(50)]
    text = " ".join(shown(report).split())
    assert "and 10 more" in text and "what 39" in text and "what 40" not in text


def shown(report: BenchReport) -> str:
    console = Console(width=200, record=True, file=None, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        for grid in tables.summary(report):
            console.print(grid.to_rich())
    return capture.get()


def test_the_summary_says_what_matters() -> None:
    report = bench_reports.collectives()
    report.collectives.append(bench_reports.collective("all_reduce", 2**26, wrong=3))
    report.skipped.append(Skip("[red]barrier", 0, "not offered"))
    text = shown(report)
    assert "2.99 GB/s" in text and "zipf:1.2" in text and "2 at once" in text
    assert "needs 16 GiB, 3 GiB are free" in text and "[red]barrier" in text
    wrong = [line for line in text.splitlines() if "64 MiB" in line]
    assert len(wrong) == 1 and wrong[0].rstrip(" │").endswith(" 3")
    assert "450 GFLOP/s" in shown(bench_reports.hardware())  # The slowest rank's.


def test_a_row_fits_its_table() -> None:
    grid = TextTable("t", ("a", "b"))
    with pytest.raises(ValueError, match="t: 1 cells for 2 columns"):
        grid.add("only one")
    grid.add("x", Cell("1 s", 1.0))
    grid.add("y", "-")
    assert not grid.numeric(0) and grid.numeric(1)


@pytest.mark.parametrize(
    "make, names",
    [
        (bench_reports.collectives, {"bandwidth", "time", "ranks", "at-once", "links"}),
        (bench_reports.hardware, {"memory", "gemm", "attention", "copy", "devices"}),
    ],
)
def test_plots_are_files_with_ink(make: object, names: set[str], tmp_path: Path) -> None:
    (tmp_path / "bandwidth.png").write_text("an earlier run's")
    (tmp_path / "memory.png").write_text("an earlier run's")
    paths = plots.save(make(), tmp_path)  # type: ignore[operator]
    assert {path.stem for path in paths} == names == {p.stem for p in tmp_path.iterdir()}
    for path in paths:
        image = imread(path)
        assert image.shape[0] > 300 and image.min() < 0.2 < 0.9 < image.max()


def test_the_plot_of_interference_shows_the_share() -> None:
    figure = plots.at_once(bench_reports.collectives())
    assert figure is not None
    (line, _alone) = figure.axes[0].lines
    assert line.get_xydata() == pytest.approx(np.array([[s, 0.5] for s in bench_reports.SIZES]))


def test_the_map_of_links_shows_the_slow_one() -> None:
    figure = plots.link_map(bench_reports.collectives())
    assert figure is not None
    grid: Any = figure.axes[0].images[0].get_array()
    assert grid[1, 3] == grid[3, 1] == pytest.approx(grid[0, 1] / 3)


@given(st.floats(1e-7, 1e15))
@example(999.6e6)
def test_numbers_are_short_and_true(value: float) -> None:
    text = units.rate(value)
    number, unit = text.split(" ")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit.removesuffix("B/s")]
    assert float(number) * scale == pytest.approx(value, rel=6e-3, abs=6e-3)
    assert 1 <= float(number) < 1000 or scale in (1, 1e12)


@pytest.mark.parametrize(
    "s, text",
    [
        (0.0, "0.00 us"),
        (9.9999e-7, "1.00 us"),
        (12.34e-6, "12.3 us"),
        (9.9997e-4, "1.00 ms"),
        (0.25, "250 ms"),
        (4321.0, "4321 s"),
    ],
)
def test_times(s: float, text: str) -> None:
    assert units.seconds(s) == text
