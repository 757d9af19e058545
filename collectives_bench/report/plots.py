"""The plots of a report: PNG files, and SVG for a page that follows its reader's colours."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..hardware import PROBES
from ..schema import BenchReport
from .plots_collectives import at_once, bandwidth, link_map, per_rank, times
from .plots_hardware import curve, curves, devices

Draw = Callable[[BenchReport], Figure | None]
"""Gives None where the report holds nothing for the plot."""
COLLECTIVES: dict[str, tuple[str, Draw]] = {
    "bandwidth": ("Bus bandwidth over size (fitted lines dashed)", bandwidth),
    "time": ("Time over size, median to 95th percentile", times),
    "ranks": ("Ranks against each other, at each operation's largest size", per_rank),
    "at-once": ("What other groups cost that run at the same time", at_once),
    "links": ("Links between pairs of ranks", link_map),
}
"""Title and drawing by name."""
INK, PAPER = "#010203", "#fdfcfb"
"""Colours that stand for the page's own in an SVG."""
_SVG: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moelstrom",
    "axes.facecolor": "none",
    "legend.facecolor": PAPER,
    **{f"{name}color": INK for name in ("text.", "axes.label", "xtick.", "ytick.", "grid.")},
    "axes.edgecolor": INK,
    "legend.edgecolor": INK,
}


def everything() -> dict[str, tuple[str, Draw]]:
    """All plots that there are: of collectives, a curve for each kind of probe, the devices."""
    found = dict(COLLECTIVES)
    for name, benches in curves().items():
        title = PROBES[benches[0]].curve.title
        found[name] = (title[:1].upper() + title[1:], partial(curve, benches=benches))
    return {**found, "devices": ("Devices against each other", devices)}


def save(report: BenchReport, folder: Path) -> list[Path]:
    """Write every plot as `folder/NAME.png`; those of an earlier run that are not made go."""
    paths = []
    for name, (_, draw) in everything().items():
        path = folder / f"{name}.png"
        with _drawn(draw, report) as figure:
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def svgs(report: BenchReport) -> dict[str, str]:
    """Every plot as an `<svg>` element by name, in the CSS colours `--ink` and `--paper`."""
    found = {}
    for name, (_, draw) in everything().items():
        with matplotlib.rc_context(_SVG), _drawn(draw, report) as figure:
            if figure is not None:
                found[name] = _svg(figure)
    return found


@contextmanager
def _drawn(draw: Draw, report: BenchReport) -> Iterator[Figure | None]:
    # Not pyplot: it keeps every figure, and picks a window system.
    figure = draw(report)
    yield figure
    if figure is not None:
        figure.clear()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    # Without the XML and document type lines, which a page has no place for.
    text = text[text.index("<svg") :]
    return text.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")
