"""`moelstrom bench`: the network and the devices, measured, drawn and compared."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...collectives_bench import THRESHOLD
from .. import terminal

if TYPE_CHECKING:
    from ...collectives_bench.schema import BenchReport
    from ..bench.config import Kind

app = typer.Typer(
    help="Measure the network and the devices.", no_args_is_help=True, add_completion=False
)

ConfigOption = Annotated[str | None, typer.Option("--config", help="YAML file; none: defaults.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field.")
]
NprocOption = Annotated[
    int | None, typer.Option("--nproc", help="Workers; none: one a GPU of this machine, or core.")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", metavar="HEAD:PORT", help="A running Ray cluster.")
]
LauncherOption = Annotated[
    str | None, typer.Option("--launcher", help="`ray`, or `none`: this process is the one rank.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder of the report.")]
BaselineOption = Annotated[
    Path | None, typer.Option("--baseline", help="An earlier report.json; slower than it: exit 1.")
]
ThresholdOption = Annotated[
    float, typer.Option("--threshold", help="Share of time that counts as slower.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
JsonFileOption = Annotated[Path | None, typer.Option("--out", help="File to write the JSON to.")]


@app.command()
def collectives(
    config_file: ConfigOption = None,
    overrides: SetOption = None,
    nproc: NprocOption = None,
    address: AddressOption = None,
    launcher: LauncherOption = None,
    out: OutOption = None,
    baseline: BaselineOption = None,
    threshold: ThresholdOption = THRESHOLD,
    bucket_into: Annotated[
        Path | None,
        typer.Option(help="A training YAML whose engine.bucket_mb becomes the saturating size."),
    ] = None,
) -> None:
    """Sweep collectives over sizes and groups; 1 for a fault, a wrong result or a regression."""
    from .. import config

    if bucket_into:
        config.load(str(bucket_into))
    sets = _sets(overrides, nproc, address, launcher, out)
    report = _bench("collectives", config_file, sets, baseline, threshold)
    if bucket_into:
        _write_bucket(report, bucket_into)


@app.command()
def hardware(
    config_file: ConfigOption = None,
    overrides: SetOption = None,
    nproc: NprocOption = None,
    address: AddressOption = None,
    launcher: LauncherOption = None,
    out: OutOption = None,
    baseline: BaselineOption = None,
    threshold: ThresholdOption = THRESHOLD,
    model: Annotated[
        str | None, typer.Option(help="A training YAML or recipe: also its matrix products.")
    ] = None,
) -> None:
    """Memory, matrix products, attention and host copies of each device."""
    from ..bench.shapes import settings

    sets = _sets(overrides, nproc, address, launcher, out)
    _bench(
        "hardware", config_file, [*(settings(model) if model else []), *sets], baseline, threshold
    )


@app.command("report")
def redraw(
    source: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json.")],
    out: Annotated[Path | None, typer.Option(help="Folder; none: the report's own.")] = None,
) -> None:
    """Analyse a report again, and draw its CSV, plots and page."""
    from ...collectives_bench.report import tables
    from ...collectives_bench.schema import read
    from ..bench.report import analyse_into, draw, kept_comparison, prepare, say

    report, console = read(source), terminal.console()
    compared = kept_comparison(report, source)
    folder = out or source.parent
    prepare(folder)
    analyse_into(report, None, THRESHOLD)
    if compared:
        report.analysis["comparison"] = asdict(compared)
    paths = draw(report, folder)
    for grid in tables.summary(report):
        console.print(grid.to_rich())
    say(console, "  ".join(map(str, paths)))


@app.command("compare")
def compare_reports(
    old: Annotated[Path, typer.Argument(help="The baseline's report.json.")],
    new: Annotated[Path, typer.Argument(help="The report.json to judge.")],
    threshold: ThresholdOption = THRESHOLD,
    as_json: JsonOption = False,
    out: JsonFileOption = None,
) -> None:
    """Hold one report against another; 1 if anything became slower, wrong or is missing."""
    from ...collectives_bench.compare import compare
    from ...collectives_bench.report import tables
    from ...collectives_bench.schema import read
    from ..bench.config import check_kind
    from ..bench.report import say

    terminal.check_writable("--out", out)
    before, after = read(old), read(new)
    check_kind(before, after.kind, old)
    found = compare(before, after, threshold)
    terminal.write_json(asdict(found), as_json, out)
    if not as_json:
        console = terminal.console()
        console.print(tables.comparison(asdict(found)).to_rich())
        for line in (*found.notes, found.verdict):
            say(console, line)
    raise typer.Exit(found.exit_code)


@app.command("predict")
def predict_steps(
    source: Annotated[Path, typer.Argument(metavar="REPORT", help="A report of collectives.")],
    training: Annotated[str, typer.Argument(metavar="CONFIG", help="A training YAML or recipe.")],
    ranks: Annotated[
        list[int] | None, typer.Option(min=1, help="Counts of ranks; none: up to 10,000.")
    ] = None,
    per_node: Annotated[int, typer.Option(min=1, help="Ranks of a node.")] = 8,
    compute_s: Annotated[
        float | None, typer.Option(min=0, help="Seconds of a step's computation.")
    ] = None,
    as_json: JsonOption = False,
    out: JsonFileOption = None,
) -> None:
    """Predict a training step's communication on any number of ranks from a report's fits.

    What the report cannot tell stays empty, and the measurement that is missing is named.
    """
    from ...collectives_bench.schema import read
    from .. import config
    from ..bench.config import check_kind
    from ..bench.predict import default_counts, gaps, predict, table
    from ..bench.report import say

    terminal.check_writable("--out", out)
    report, run = read(source), config.load(training)
    check_kind(report, "collectives", source)
    points = predict(report, run, per_node, ranks or default_counts(per_node, run.layout.ep))
    terminal.write_json([point.as_json() for point in points], as_json, out)
    if not as_json:
        console = terminal.console()
        console.print(table(points, compute_s).to_rich())
        for line in gaps(points):
            say(console, line)


def _sets(
    overrides: list[str] | None,
    nproc: int | None,
    address: str | None,
    launcher: str | None,
    out: Path | None,
) -> list[str]:
    """The options that are short for a field, after the user's own overrides."""
    short = {
        "nproc": nproc,
        "cluster.address": address,
        "cluster.launcher": launcher,
        "output": None if out is None else str(out),
    }
    given = {name: value for name, value in short.items() if value is not None}
    return [*(overrides or []), *(f"{name}={json.dumps(value)}" for name, value in given.items())]


def _bench(
    kind: "Kind", source: str | None, sets: list[str], baseline: Path | None, threshold: float
) -> "BenchReport":
    """Measure and finish; leaves with the exit code unless that is 0."""
    from ...collectives_bench.report.units import count
    from ...collectives_bench.schema import read
    from ..bench import config as bench_config
    from ..bench.report import finish, prepare, say

    run = bench_config.load(kind, source, sets)
    # Every mistake before the first worker: a sweep may take long.
    before = None if baseline is None else read(baseline)
    if before and baseline:
        bench_config.check_kind(before, kind, baseline)
    folder, console = bench_config.folder_of(kind, run), terminal.console()
    ranks = run.ranks
    prepare(folder)
    from ..bench.run import INTERRUPTED, run_here, run_under_ray

    start = run_here if run.cluster.launcher == "none" else run_under_ray
    say(console, f"bench {kind} on {count(ranks, 'rank')}, report in {folder}")
    report = start(kind, run, console)
    code = finish(report, folder, console, before, threshold)
    if code:
        raise typer.Exit(130 if report.ended == INTERRUPTED else code)
    return report


def _write_bucket(report: "BenchReport", path: Path) -> None:
    from ...collectives_bench import bucket
    from ..bench.report import say

    choice = bucket.choose(report)
    bucket.write(path, choice.mib)
    say(
        terminal.console(),
        f"{path}: engine.bucket_mb: {choice.mib} ({choice.op} over {choice.group} reaches "
        f"{choice.share:.0%} of its bandwidth there)",
    )
