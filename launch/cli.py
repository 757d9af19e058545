"""The `moelstrom` command."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import UserError, __version__
from ..cluster.events import EventWriter
from ..cluster.spec import USER_ERROR_EXIT, Event, WorkerSpec
from .config import RunConfig, dump, load
from .kernels_cli import app as kernels_app

app = typer.Typer(
    help="Distributed mixture-of-experts pretraining from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(kernels_app, name="kernels")

ConfigArgument = Annotated[str, typer.Argument(help="YAML file, or a recipe's name (tiny).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field.")
]


def main() -> None:
    """Run the command line: 2 and one message for a user's mistake, never a traceback."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT)
    except KeyboardInterrupt:
        print("interrupted; the last complete checkpoint stays", file=sys.stderr)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option(help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would run, start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run as JSON.")] = False,
) -> None:
    """Train, or go on from the run's last complete checkpoint."""
    run = load(config, overrides)
    if dry_run:
        _dry_run(run, as_json)
        return
    from .data.prepare import load_dataset

    console = Console()
    # Before the workers start, so that one process prepares and shows the progress.
    load_dataset(run.data)
    run.folder.mkdir(parents=True, exist_ok=True)
    start = _train_here if run.cluster.launcher == "none" else _train_under_ray
    start(run, console)
    _finish(run, config, console)


def _dry_run(run: RunConfig, as_json: bool) -> None:
    from .plan import make_plan
    from .show import plan_view

    plan = make_plan(run)
    if as_json:
        print(json.dumps({"config": run.model_dump(mode="json"), **plan.as_json()}, indent=2))
    else:
        Console().print(plan_view(run, plan))


def _train_here(run: RunConfig, console: Console) -> None:
    from .progress import Display
    from .worker import run as run_worker

    with Display(console, run.steps, run.log_interval) as display:
        run_worker(run, [display], EventWriter(None))


def _train_under_ray(run: RunConfig, console: Console) -> None:
    from ..cluster.supervisor import run_group
    from .progress import Display

    resolved = run.folder / "config.yaml"
    resolved.write_text(dump(run), encoding="utf-8")
    command = (sys.executable, "-m", "moelstrom.launch.worker", "--config", str(resolved.resolve()))
    spec = WorkerSpec(command, run.layout.world_size, dict(run.cluster.env))
    with Display(console, run.steps, run.log_interval) as display:

        def on_event(rank: int | None, event: Event) -> None:
            display(event)

        outcome = run_group(spec, run.cluster, on_event=on_event, log_dir=run.folder / "workers")
    if outcome.exit_code == USER_ERROR_EXIT:
        raise UserError(outcome.message)
    if outcome.exit_code:
        print(f"failed: {outcome.message}; logs: {run.folder / 'workers'}", file=sys.stderr)
        raise typer.Exit(1)


def _finish(run: RunConfig, source: str, console: Console) -> None:
    from .log import read
    from .report import draw
    from .show import finish_view, next_steps

    console.print(finish_view(run, read(run.folder)))
    draw(run.folder)
    next_steps(run, source, console)


@data_app.command("prepare")
def prepare_data(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    domain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="A domain's text; none: Python's own text."),
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="`byte` or a tokenizer.json.")] = "byte",
    valid_fraction: Annotated[float, typer.Option(help="Held-out share of documents.")] = 0.02,
) -> None:
    """Turn folders of text into Megatron's indexed format (.bin, .idx)."""
    from .data.prepare import ensure_default, prepare
    from .data.tokenizer import load_tokenizer

    made = load_tokenizer(tokenizer)
    if domain:
        domains = dict(_domain(entry) for entry in domain)
        dataset = prepare(out, domains, made, valid_fraction=valid_fraction)
    else:
        dataset = ensure_default(out, made, progress=True)
    for name, info in dataset.manifest.domains.items():
        print(f"{name}: {info.train.tokens:,} tokens to train, {info.valid.tokens:,} held out")
    print(f"use it: moelstrom train tiny --set data.path={out} --set data.tokenizer={tokenizer}")


def _domain(entry: str) -> tuple[str, Path]:
    name, equals, folder = entry.partition("=")
    if not equals or not name or not folder:
        raise UserError(f"--domain {entry}: write name=folder")
    return name, Path(folder)
