"""`moelstrom train`: one run, from its YAML to its end."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ... import UserError
from .options import ConfigArgument, SetOption

if TYPE_CHECKING:
    from rich.console import Console

    from ...cluster.spec import Outcome
    from ..config import RunConfig

app = typer.Typer(add_completion=False)


@app.command()
def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would run, start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run as JSON.")] = False,
) -> None:
    """Train, or go on from the run's last complete checkpoint."""
    from rich.console import Console

    from ..config import load

    if as_json and not dry_run:
        raise UserError("--json: shows a dry run; add --dry-run, or drop it")
    run = load(config, overrides)
    _check_launcher(run)
    if dry_run:
        _dry_run(run, as_json)
        return
    console = Console()
    try:
        finished = _train(run, console)
    except KeyboardInterrupt:
        print("interrupted; the last complete checkpoint stays", file=sys.stderr)
        raise typer.Exit(130) from None
    if finished:
        _finish(run, console)


def _check_launcher(run: "RunConfig") -> None:
    # Here and not in `load`: the workers of another launcher, such as torchrun, read the same YAML.
    if run.cluster.launcher == "none" and run.layout.world_size > 1:
        raise UserError(
            f"cluster.launcher: none starts one worker, but layout.dp is {run.layout.dp}; set "
            "cluster.launcher: ray, or layout.dp: 1, or start the workers with `torchrun "
            f"--nproc-per-node {run.layout.dp} -m moelstrom.launch.worker`"
        )


def _dry_run(run: "RunConfig", as_json: bool) -> None:
    from rich.console import Console

    from ..config import dump
    from ..train.plan import make_plan
    from ..train.show import plan_view

    plan = make_plan(run)
    if as_json:
        print(json.dumps({"config": run.model_dump(mode="json"), **plan.as_json()}, indent=2))
    else:
        # Whole lines, which can be copied into a file.
        print(dump(run))
        Console().print(plan_view(run, plan))


def _train(run: "RunConfig", console: "Console") -> bool:
    """Whether the run came to its end, and did not leave on SIGTERM."""
    from ..train import start
    from ..train.sole import sole

    # Before there is a folder: a refused start leaves none.
    start.check(run)
    with sole(run.folder):
        resolved = start.prepare(run)
        if run.cluster.launcher == "none":
            return _train_here(run, console)
        return _ended(run, start.train_under_ray(run, resolved, console))


def _train_here(run: "RunConfig", console: "Console") -> bool:
    """Train as the one rank, in this process."""
    from ...cluster.events import EventWriter
    from ...moe.checkpoint.commit import CheckpointError
    from ..train.progress import Display
    from ..train.rollback import RollBackError
    from ..worker import run as run_worker

    with Display(console, run.steps, run.log_interval) as display:
        while True:
            try:
                return run_worker(run, [display], EventWriter(None))
            except RollBackError:
                # `health.max_rollbacks` bounds it.
                continue
            except CheckpointError as error:
                print(f"failed: {error}", file=sys.stderr)
                raise typer.Exit(1) from None


def _ended(run: "RunConfig", outcome: "Outcome") -> bool:
    """Whether the run came to its end; a failure is raised."""
    from ...cluster.spec import USER_ERROR_EXIT

    if outcome.exit_code == USER_ERROR_EXIT:
        raise UserError(outcome.message)
    if outcome.exit_code:
        print(f"failed: {outcome.message}; logs: {run.folder / 'workers'}", file=sys.stderr)
        raise typer.Exit(1)
    if outcome.preempted:
        print(outcome.message)
    return not outcome.preempted


def _finish(run: "RunConfig", console: "Console") -> None:
    from ..train.log import read
    from ..train.picture import draw
    from ..train.show import finish_view, next_steps
    from ..train.summary import summarise

    records = read(run.folder)
    if not records:
        print(f"trained; the log lies in {run.folder} on the node of rank 0")
        return
    console.print(finish_view(run, records))
    draw(run.folder)
    summarise(run.folder)
    next_steps(run, console)
