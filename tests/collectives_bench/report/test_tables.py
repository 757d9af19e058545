"""The cells of a report's tables, and the axes of its plots."""

from typing import Any

import bench_reports
import pytest

from moelstrom.collectives_bench.hardware import PROBES
from moelstrom.collectives_bench.report import plots_hardware, tables
from moelstrom.collectives_bench.report.grid import Cell


def test_cells_hold_the_value_beside_its_text() -> None:
    assert tables.size(1536) == Cell("1.5 KiB", 1536.0)
    assert tables.time(0.002) == Cell("2.00 ms", 0.002)
    assert tables.speed(3e9) == Cell("3.00 GB/s", 3e9)
    assert tables.number(12) == Cell("12", 12.0)
    assert tables.number(1.2345, ".2f") == Cell("1.23", 1.2345)


def test_what_was_not_measured_is_no_zero() -> None:
    cells = (tables.size(None), tables.time(None), tables.speed(None), tables.wrong(None))
    assert cells == (tables.NOTHING,) * 4
    assert tables.time(0.0).value == 0.0


def test_wrong_elements_are_bad_and_none_is_good() -> None:
    assert tables.wrong(0) == Cell("0", 0.0, "good")
    assert tables.wrong(3) == Cell("3", 3.0, "bad")


TICKS = {"memory": (2**20, "1 MiB"), "gemm": (10**9, "1.00 G"), "attention": (4096, "4096")}


@pytest.mark.parametrize("name", TICKS)
def test_the_axis_counts_what_the_curve_says(name: str) -> None:
    """Bytes in binary units, operations in decimal ones, lengths as they are."""
    figure = plots_hardware.curve(bench_reports.hardware(), plots_hardware.curves()[name])
    assert figure is not None
    axis, (at, text) = figure.axes[0], TICKS[name]
    assert axis.xaxis.get_major_formatter()(at, 0) == text
    assert axis.get_xlabel() == PROBES[name].curve.label and axis.get_xscale() == "log"


def test_devices_stand_beside_their_median() -> None:
    figure = plots_hardware.devices(bench_reports.hardware())
    assert figure is not None
    (axis,) = figure.axes
    shown: Any = axis
    heights = [y for line in shown.lines for y in line.get_ydata()]
    heights += [patch.get_height() for patch in shown.patches]
    heights += [y for c in shown.collections for _, y in c.get_offsets()]
    # 1.0 and 0.9 of a median of 0.95.
    assert any(abs(y - 1 / 0.95) < 1e-9 for y in heights)
    assert any(abs(y - 0.9 / 0.95) < 1e-9 for y in heights)
