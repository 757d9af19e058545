"""What `train` and `chaos` do with a run: check what it reads and writes, and start its workers."""

import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from ... import UserError
from ...cluster.config import ClusterConfig
from ...cluster.spec import Event, OnEvent, Outcome, WorkerSpec
from ...moe.checkpoint.owner import RUN_VARIABLE, Owner
from ...moe.vocabulary import sized
from ..config import RESOLVED, RunConfig, dump
from ..data.prepare import ensure_default, load_dataset
from ..data.tokenizer import load_tokenizer
from ..terminal import usable
from .elastic import allowed_sizes
from .progress import Display
from .records import heard

WORKERS_PER_CORE = 4
"""Of a local run: beyond that, heartbeats come too late."""
OVERSUBSCRIBE = "MOELSTROM_OVERSUBSCRIBE"
"""Environment variable that lifts the limit."""


def prepare(run: RunConfig) -> Path:
    """Meet every mistake in what the run reads and writes before a worker starts; returns the
    file of the config that the workers read. They leave it in the run's folder when they have
    resumed: a config that does not fit the checkpoint must not take the place of the one that
    does."""
    check(run)
    tokenizer = load_tokenizer(run.data.tokenizer)
    wanted = run.folder / "workers" / RESOLVED
    with usable(f"output: {run.folder}"):
        run.folder.mkdir(parents=True, exist_ok=True)
        wanted.parent.mkdir(exist_ok=True)
        wanted.write_text(dump(run), encoding="utf-8")
        if (run.folder / RESOLVED).exists():
            (run.folder / RESOLVED).open("r+b").close()
    saves = Path(run.placed_checkpoint.path)
    with usable(f"checkpoint.path: {saves}"):
        saves.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=saves).close()
    with usable(f"data.path: {run.data.path}"):
        if run.data.corpus == "python":
            ensure_default(Path(run.data.path), tokenizer, progress=True)
        load_dataset(run.data, run_folder=run.folder)
    return wanted


def check(run: RunConfig) -> None:
    """Meet the mistakes that can be met before anything is written."""
    sized(run.model, load_tokenizer(run.data.tokenizer).vocab_size)
    _check_room(run)
    start = run.checkpoint.load
    if start and not Path(start).is_dir():
        raise UserError(f"checkpoint.load: {start} is no folder; name a checkpoint's, or drop it")
    if run.data.corpus is None:
        with usable(f"data.path: {run.data.path}"):
            load_dataset(run.data)


def _check_room(run: RunConfig) -> None:
    """More workers than this machine can run at once look like faults to their supervisor."""
    cores, workers = os.cpu_count() or 1, run.layout.world_size
    most = WORKERS_PER_CORE * cores
    alone = run.cluster.launcher == "ray" and run.cluster.address is None
    if alone and workers > most and OVERSUBSCRIBE not in os.environ:
        raise UserError(
            f"layout.dp: {workers} workers on this machine, whose {cores} cores can take {most}; "
            f"lower it, give cluster.address of a cluster that has room, or set {OVERSUBSCRIBE}=1 "
            "to start them all the same"
        )


def train_under_ray(
    run: RunConfig, resolved: Path, console: Console, watch: OnEvent | None = None
) -> Outcome:
    """Run the workers; `watch` hears every event beside the display."""
    from ...cluster.supervisor import run_group

    program = (sys.executable, "-P", "-m", "moelstrom.launch.worker")
    command = (*program, "--config", str(resolved.resolve()))
    spec = WorkerSpec(command, run.layout.world_size, world_sizes=allowed_sizes(run))
    with Display(console, run.steps, run.log_interval) as display:

        def on_event(rank: int | None, event: Event) -> None:
            display(heard(event))
            if watch:
                watch(rank, event)

        return run_group(spec, _named(run), on_event=on_event, log_dir=run.folder / "workers")


def _named(run: RunConfig) -> ClusterConfig:
    """The cluster whose workers know which command they belong to: a later group of them takes
    over at once from an earlier one."""
    env = {**run.cluster.env, RUN_VARIABLE: Owner.here().run}
    return run.cluster.model_copy(update={"env": env})
