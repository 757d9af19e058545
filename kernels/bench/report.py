"""The benchmark's tables and plot, made from its JSON."""

from pathlib import Path
from typing import Any

from rich.table import Table

from .candidates import describe, fastest

BAR = 0.88
"""Share of the dense chain asked of the experts' forward and backward pass."""
STREAM_BAR = 0.85
NEWTON_SCHULZ_BAR = 1.7

Results = dict[str, Any]
COLUMNS = (
    ("forward+backward", "balanced", "f+b"),
    ("forward+backward", "skewed", "f+b skew"),
    ("forward", "balanced", "fwd"),
    ("forward", "skewed", "fwd skew"),
)


def tables(results: Results) -> list[Table]:
    """The shares of the dense chain by scope, then the other operators."""
    scopes = list(dict.fromkeys(row["scope"] for row in results["timings"]))
    made = [_shares(results, scope) for scope in scopes]
    if results["streams"]:
        made.append(_streams(results))
    for section, bar in (("newton_schulz", NEWTON_SCHULZ_BAR), ("cross_entropy", None)):
        if results[section]:
            made.append(_versus(section, results[section], bar))
    return made


def _shares(results: Results, scope: str) -> Table:
    rows = [row for row in results["timings"] if row["scope"] == scope]
    widths = list(dict.fromkeys(row["width"] for row in rows))
    table = Table(title=f"{scope}: share of the dense chain (bar {BAR} forward+backward)")
    table.add_column("contender", no_wrap=True)
    for width in widths:
        for _, _, short in COLUMNS:
            table.add_column(f"{width}\n{short}", justify="right")
    table.add_column("peak GiB", justify="right")
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        cells = [_cell(mine, width, *column[:2]) for width in widths for column in COLUMNS]
        peak = max(row["peak_bytes"] for row in mine) / 2**30
        table.add_row(name, *cells, f"{peak:.2f}")
    return table


def tuning(results: Results) -> Table:
    """What `kernels tune` found for every operator and width, beside what ran before and dense."""
    table = Table(title=f"tile configs, {results['target']} ({results['gpu']['name']}), TFLOP/s")
    for name in ("operator", "width", "fastest config"):
        table.add_column(name, overflow="fold")
    for name in ("rate", "in use", "dense", "of dense"):
        table.add_column(name, justify="right")
    for row in results["timings"]:
        best = fastest(row)
        old = [r["tflops"] for r in row["rates"] if r["tflops"] and r["config"] == row["now"]]
        rate, dense = best and best["tflops"], row["dense_tflops"]
        table.add_row(
            row["operator"],
            row["width"],
            describe(best["config"]) if best else "-",
            *(f"{number:.0f}" if number else "-" for number in (rate, *(old or [None]), dense)),
            f"{rate / dense:.2f}" if rate and dense else "-",
        )
    return table


def _cell(rows: list[Results], width: str, direction: str, load: str) -> str:
    for row in rows:
        if (row["width"], row["pass"], row["load"]) == (width, direction, load):
            share = row["share_of_dense"]
            return f"{row['median_ms']:.2f} ms" if share is None else f"{share:.3f}"
    return "-"


def _streams(results: Results) -> Table:
    table = Table(title=f"memory-bound operators (bar {STREAM_BAR} of copy)")
    for name in ("operator", "contender", "us", "GB/s", "of copy", "peak MiB"):
        table.add_column(name, justify="left" if name in ("operator", "contender") else "right")
    for row in results["streams"]:
        share = row["share_of_copy"]
        table.add_row(
            row["operator"],
            row["contender"],
            f"{row['median_ms'] * 1e3:.0f}",
            f"{row['bytes_per_s'] / 1e9:.0f}",
            "" if share is None else f"{share:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
        )
    return table


def _versus(section: str, rows: list[Results], bar: float | None) -> Table:
    title = section.replace("_", "-") + (f" (bar {bar} over torch)" if bar else "")
    table = Table(title=title)
    for name in ("shape", "contender", "ms", "over torch", "peak MiB"):
        table.add_column(name, justify="left" if name in ("shape", "contender") else "right")
    for row in rows:
        speedup = row["speedup"]
        table.add_row(
            row["shape"],
            row["contender"],
            f"{row['median_ms']:.2f}",
            "" if speedup is None else f"{speedup:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
        )
    return table


def plot(results: Results, path: Path) -> None:
    """Bars of the share of the dense chain, forward and backward, one panel a scope."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in results["timings"] if row["pass"] == "forward+backward"]
    scopes = list(dict.fromkeys(row["scope"] for row in rows))
    figure, axes = pyplot.subplots(
        max(len(scopes), 1), 1, figsize=(11, 4 * max(len(scopes), 1)), squeeze=False
    )
    colors = {
        name: f"C{i}" for i, name in enumerate(dict.fromkeys(row["contender"] for row in rows))
    }
    for axis, scope in zip(axes[:, 0], scopes, strict=False):
        _panel(axis, [row for row in rows if row["scope"] == scope], scope, colors)
    figure.suptitle(f"Expert MLP, forward and backward: {results['gpu']['name']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panel(axis: Any, rows: list[Results], scope: str, colors: dict[str, str]) -> None:
    cases = list(dict.fromkeys((row["width"], row["load"]) for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    thickness = 0.8 / len(names)
    for i, name in enumerate(names):
        found = {
            (row["width"], row["load"]): row["share_of_dense"] or 0.0
            for row in rows
            if row["contender"] == name
        }
        places = [c + (i - (len(names) - 1) / 2) * thickness for c in range(len(cases))]
        heights = [found.get(case, 0.0) for case in cases]
        axis.bar(places, heights, thickness, label=name, color=colors[name])
    axis.axhline(BAR, color="black", linewidth=0.8, linestyle="--", label=f"bar {BAR}")
    axis.set_xticks(range(len(cases)), [f"{width}\n{load}" for width, load in cases], fontsize=8)
    axis.set_ylabel("share of dense chain")
    axis.set_title(scope, fontsize=10)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
