"""The training worker: a plain `torch.distributed` program that finds its place in env://.

Ray starts it by default; `torchrun -m moelstrom.launch.worker --config run.yaml` works as well,
and so does `python -m` of it as one process without any launcher.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from .. import UserError
from ..cluster.events import EventWriter
from ..cluster.spec import USER_ERROR_EXIT
from ..moe.checkpoint.commit import CheckpointError
from .config import RunConfig, load
from .hardware import make_deterministic, rank_device
from .log import Listener
from .loop import Training
from .progress import Display


def main(arguments: list[str] | None = None) -> int:
    """Run one rank; returns the exit code (2 for a user's mistake)."""
    events = EventWriter.from_env()
    parser = argparse.ArgumentParser(prog="moelstrom.launch.worker")
    parser.add_argument("--config", required=True, help="YAML file or recipe")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)
    try:
        config = load(options.config, options.set)
        with _listener(config, events) as listener:
            run(config, [listener], events)
    except UserError as error:
        events.emit("error", message=str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR_EXIT
    except CheckpointError as error:
        # Perhaps a full disk: no mistake of the config, so a supervisor may try again.
        events.emit("error", message=str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


@contextmanager
def _listener(config: RunConfig, events: EventWriter) -> Iterator[Listener]:
    """The supervisor, which shows the run; without one (torchrun, Slurm) rank 0 shows it here."""
    if events.connected or os.environ.get("RANK", "0") != "0":
        yield lambda record: events.emit(**record)
        return
    with Display(Console(), config.steps, config.log_interval) as display:
        yield display


def run(config: RunConfig, listeners: list[Listener], events: EventWriter) -> None:
    """Train on this rank; `listeners` get the records of rank 0, `events` every rank's steps."""
    device = rank_device()
    if config.engine.deterministic and device.type == "cuda":
        make_deterministic()
    with process_group(device):
        Training(config, device, listeners, events).run()


@contextmanager
def process_group(device: torch.device, timeout_s: float | None = None) -> Iterator[None]:
    """The default process group: env:// when a launcher started us, else of one process.

    `timeout_s` is how long a collective may take; None: torch's own default.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    place: dict[str, Any] = (
        {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    )
    bound = device if device.type == "cuda" else None
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    dist.init_process_group(backend, device_id=bound, timeout=timeout, **place)
    try:
        yield
    finally:
        # After an error the peers may be gone, and a teardown would wait for them.
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
