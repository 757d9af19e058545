"""`moelstrom chaos`: a training run under faults on purpose."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ... import UserError
from .. import terminal
from .options import ConfigArgument, SetOption

if TYPE_CHECKING:
    from rich.console import Console

    from ..chaos.recovery import Report
    from ..chaos.scenario import Scenario
    from ..config import RunConfig

app = typer.Typer(add_completion=False)


@app.command()
def chaos(
    config: ConfigArgument,
    overrides: SetOption = None,
    scenario: Annotated[Path | None, typer.Option(help="YAML file that lists the faults.")] = None,
    random: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Draw this many faults instead.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the draw.")] = 0,
    spacing: Annotated[int, typer.Option(min=4, max=10**6, help="Steps between them.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Train, break it on purpose, and report what each fault cost; 1 if any was not overcome."""
    from rich.console import Console

    from ..config import load

    run = load(config, overrides)
    _check_run(run)
    faults = _faults(run, scenario, random, seed, spacing)
    # The run's lines, and Ray's about lost nodes, go to stderr where stdout has to be JSON.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        report = _train(run, faults, Console())
    _show(report, run.folder / "chaos", as_json)
    if not report.ok:
        raise typer.Exit(1)


def _check_run(run: "RunConfig") -> None:
    from ..train.log import LOG_NAME

    if run.cluster.launcher != "ray":
        raise UserError("cluster.launcher: chaos needs workers that are watched; set it to ray")
    if (run.folder / LOG_NAME).exists():
        raise UserError(
            f"{run.folder}: holds a run already, and chaos judges one from its start; give it "
            "another folder with --set output=FOLDER"
        )


def _faults(
    run: "RunConfig", path: Path | None, count: int | None, seed: int, spacing: int
) -> "Scenario":
    from ..chaos.scenario import Draw, check, draw
    from ..chaos.scenario import load as load_scenario

    if path is not None and count is None:
        found = load_scenario(path)
    elif count is not None and path is None:
        plan = Draw(faults=count, seed=seed, spacing=spacing)
        found = draw(plan, run.layout.world_size)
    else:
        raise UserError("give one of --scenario FILE and --random N")
    check(found, run.layout.world_size, run.cluster.max_restarts)
    return found


def _train(run: "RunConfig", faults: "Scenario", console: "Console") -> "Report":
    from ..chaos.run import train_under_faults
    from ..train.sole import sole
    from ..train.start import prepare

    with sole(run.folder):
        return train_under_faults(run, prepare(run), faults, console)


def _show(report: "Report", folder: Path, as_json: bool) -> None:
    from ..chaos.report import fault_table, phase_table, verdict, write

    paths = write(report, folder)
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
        return
    console = terminal.console()
    console.print(fault_table(report))
    console.print(phase_table(report.recoveries))
    console.print(verdict(report), highlight=False, markup=False)
    console.print("  ".join(map(str, paths)), highlight=False, markup=False)
