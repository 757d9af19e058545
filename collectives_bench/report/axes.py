"""Axes as all plots here have them."""

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..sizes import label
from . import units

WIDTH, HEIGHT = 5.6, 3.6
"""Inches of one panel."""
COLUMNS = 2
MAX_LEGEND = 10


def panels(count: int) -> tuple[Figure, list[Any]]:
    """A figure of `count` panels in rows of two; axes without a panel are left out."""
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def sizes(axis: Any) -> None:
    """A logarithmic x axis of bytes."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: label(x)))
    axis.tick_params(axis="x", labelsize=8)


def counts(axis: Any, name: str) -> None:
    """A logarithmic x axis of large numbers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: units.rate(x, "").strip()))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(name)


def rates(axis: Any, unit: str, name: str) -> None:
    """A logarithmic y axis of rates."""
    _log(axis, lambda y: units.rate(y, unit), name)


def seconds(axis: Any, name: str) -> None:
    """A logarithmic y axis of times."""
    _log(axis, units.seconds, name)


def _log(axis: Any, text: Any, name: str) -> None:
    axis.set_yscale("log")
    # Also 2 and 5, or a narrow range would have no number at all.
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=10))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: text(y)))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel(name)
    axis.tick_params(axis="y", labelsize=8)


def finish(axis: Any, title: str) -> None:
    """Title, grid, and a legend where it can be read."""
    # A name is the user's: `$` begins no formula in it.
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        more = len(labels) - MAX_LEGEND
        title = f"and {more} more" if more > 0 else ""
        shown = handles[:MAX_LEGEND], labels[:MAX_LEGEND]
        legend = axis.legend(*shown, fontsize=7, title=title, title_fontsize=7)
        for text in legend.get_texts():
            text.set_parse_math(False)
