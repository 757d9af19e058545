"""The `moelstrom` command."""

import io
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .. import UserError, __version__
from ..cluster.events import EventWriter
from ..cluster.spec import USER_ERROR_EXIT, Event, OnEvent, Outcome, WorkerSpec
from .commands.bench import app as bench_app
from .commands.chaos import chaos
from .commands.ckpt import app as ckpt_app
from .commands.hf import commands as hf_commands
from .commands.kernels import app as kernels_app
from .commands.size import size
from .config import RESOLVED, RunConfig, dump, load

if TYPE_CHECKING:
    from .data.dataset import Dataset

app = typer.Typer(
    help="Distributed mixture-of-experts pretraining from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(kernels_app, name="kernels")
app.add_typer(bench_app, name="bench")
hf_commands(ckpt_app)
app.add_typer(ckpt_app, name="ckpt")
app.command()(size)
app.command()(chaos)

CONTROL = re.compile("[\0-\t\v-\x1f\x7f-\x9f]")

ConfigArgument = Annotated[str, typer.Argument(help="YAML file, or a recipe's name (tiny).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field.")
]


def main() -> None:
    """Run the command line: 2 and one message for a user's mistake, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold bytes that no encoding has.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        # What the user wrote may command the terminal.
        text = CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(error))
        print(f"error: {text}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would run, start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run as JSON.")] = False,
) -> None:
    """Train, or go on from the run's last complete checkpoint."""
    if as_json and not dry_run:
        raise UserError("--json: shows a dry run; add --dry-run, or drop it")
    run = load(config, overrides)
    _check_launcher(run)
    if dry_run:
        _dry_run(run, as_json)
        return
    console = Console()
    resolved = prepare(run)
    try:
        if run.cluster.launcher == "none":
            finished = _train_here(run, console)
        else:
            finished = _ended(run, train_under_ray(run, resolved, console))
    except KeyboardInterrupt:
        print("interrupted; the last complete checkpoint stays", file=sys.stderr)
        raise typer.Exit(130) from None
    if finished:
        _finish(run, console)


def _check_launcher(run: RunConfig) -> None:
    # Here and not in `load`: the workers of another launcher, such as torchrun, read the same YAML.
    if run.cluster.launcher == "none" and run.layout.world_size > 1:
        raise UserError(
            f"cluster.launcher: none starts one worker, but layout.dp is {run.layout.dp}; set "
            "cluster.launcher: ray, or layout.dp: 1, or start the workers with `torchrun "
            f"--nproc-per-node {run.layout.dp} -m moelstrom.launch.worker`"
        )


def prepare(run: RunConfig) -> Path:
    """Meet every mistake in what the run reads and writes before a worker starts; returns the
    file of the config that the workers read. They leave it in the run's folder when they have
    resumed: a config that does not fit the checkpoint must not take the place of the one that
    does."""
    from .data.prepare import ensure_default, load_dataset
    from .data.tokenizer import load_tokenizer
    from .train.loop import sized

    tokenizer = load_tokenizer(run.data.tokenizer)
    sized(run.model, tokenizer.vocab_size)
    wanted = run.folder / "workers" / RESOLVED
    with _usable(f"output: {run.folder}"):
        run.folder.mkdir(parents=True, exist_ok=True)
        wanted.parent.mkdir(exist_ok=True)
        wanted.write_text(dump(run), encoding="utf-8")
        if (run.folder / RESOLVED).exists():
            (run.folder / RESOLVED).open("r+b").close()
    saves = Path(run.placed_checkpoint.path)
    with _usable(f"checkpoint.path: {saves}"):
        saves.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=saves).close()
    start = run.checkpoint.load
    if start and not Path(start).is_dir():
        raise UserError(f"checkpoint.load: {start} is no folder; name a checkpoint's, or drop it")
    with _usable(f"data.path: {run.data.path}"):
        if run.data.corpus == "python":
            ensure_default(Path(run.data.path), tokenizer, progress=True)
        load_dataset(run.data)
    return wanted


@contextmanager
def _usable(path: str) -> Iterator[None]:
    """Make the system's refusal of a path the user's mistake."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: {reason}; give a folder that this user can write") from None


def _dry_run(run: RunConfig, as_json: bool) -> None:
    from .train.plan import make_plan
    from .train.show import plan_view

    plan = make_plan(run)
    if as_json:
        print(json.dumps({"config": run.model_dump(mode="json"), **plan.as_json()}, indent=2))
    else:
        # Whole lines, which can be copied into a file.
        print(dump(run))
        Console().print(plan_view(run, plan))


def _train_here(run: RunConfig, console: Console) -> bool:
    """Whether it came to its end, and did not leave on SIGTERM."""
    from .train.health import RollBackError
    from .train.progress import Display
    from .worker import run as run_worker

    with Display(console, run.steps, run.log_interval) as display:
        while True:
            try:
                return run_worker(run, [display], EventWriter(None))
            except RollBackError:
                # `health.max_rollbacks` bounds it.
                continue


def train_under_ray(
    run: RunConfig, resolved: Path, console: Console, watch: OnEvent | None = None
) -> Outcome:
    """Run the workers; `watch` hears every event beside the display."""
    from ..cluster.supervisor import run_group
    from .train.elastic import allowed_sizes
    from .train.progress import Display

    command = (sys.executable, "-m", "moelstrom.launch.worker", "--config", str(resolved.resolve()))
    spec = WorkerSpec(command, run.layout.world_size, world_sizes=allowed_sizes(run))
    with Display(console, run.steps, run.log_interval) as display:

        def on_event(rank: int | None, event: Event) -> None:
            display(event)
            if watch:
                watch(rank, event)

        return run_group(spec, run.cluster, on_event=on_event, log_dir=run.folder / "workers")


def _ended(run: RunConfig, outcome: Outcome) -> bool:
    """Whether the run came to its end; a failure is raised."""
    if outcome.exit_code == USER_ERROR_EXIT:
        raise UserError(outcome.message)
    if outcome.exit_code:
        print(f"failed: {outcome.message}; logs: {run.folder / 'workers'}", file=sys.stderr)
        raise typer.Exit(1)
    if outcome.preempted:
        print(outcome.message)
    return not outcome.preempted


def _finish(run: RunConfig, console: Console) -> None:
    from .train.log import read
    from .train.picture import draw
    from .train.show import finish_view, next_steps
    from .train.summary import summarise

    records = read(run.folder)
    if not records:
        print(f"trained; the log lies in {run.folder} on the node of rank 0")
        return
    console.print(finish_view(run, records))
    draw(run.folder)
    summarise(run.folder)
    next_steps(run, console)


@app.command("report")
def report_run(
    folder: Annotated[Path, typer.Argument(help="A run's output folder.")],
) -> None:
    """Draw a run (run.png) and summarise it (summary.json, printed), whatever launched it."""
    from .train.picture import draw
    from .train.summary import summarise

    with _usable(f"{folder}"):
        summary = summarise(folder)
        draw(folder)
    print(json.dumps(summary, indent=2))


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
    from .data.prepare import prepare
    from .data.tokenizer import load_tokenizer
    from .train.show import command

    with _usable(f"--out {out}"):
        if domain:
            made = load_tokenizer(tokenizer)
            dataset = prepare(out, _domains(domain), made, valid_fraction=valid_fraction)
        else:
            dataset = _prepare_default(out, tokenizer, valid_fraction)
    for name, info in dataset.manifest.domains.items():
        print(f"{name}: {info.train.tokens:,} tokens to train, {info.valid.tokens:,} held out")
    settings = [f"data.path={out}", f"data.tokenizer={tokenizer}"]
    print(f"use it: {command()} train tiny --set {' --set '.join(map(shlex.quote, settings))}")


def _prepare_default(out: Path, tokenizer: str, valid_fraction: float) -> "Dataset":
    from .data.config import DataConfig
    from .data.prepare import VALID_FRACTION, ensure_default, load_dataset
    from .data.tokenizer import load_tokenizer

    if valid_fraction != VALID_FRACTION:
        raise UserError(
            f"--valid-fraction {valid_fraction}: Python's own text always holds out "
            f"{VALID_FRACTION}; drop it, or name a --domain"
        )
    ensure_default(out, load_tokenizer(tokenizer), progress=True)
    # What lay there before may be another tokenizer's.
    return load_dataset(DataConfig(path=str(out), tokenizer=tokenizer))


def _domains(entries: list[str]) -> dict[str, Path]:
    domains: dict[str, Path] = {}
    for entry in entries:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise UserError(f"--domain {entry}: write name=folder")
        if name in domains:
            raise UserError(f"--domain {entry}: {name} is {domains[name]} already; rename one")
        domains[name] = Path(folder)
    return domains
