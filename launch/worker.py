"""The training worker: a plain `torch.distributed` program that finds its place in env://.

Ray starts it by default; `torchrun -m moelstrom.launch.worker --config run.yaml` works as well,
and so does `python -m` of it as one process without any launcher.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console

from .. import UserError
from ..cluster.events import EventWriter
from ..cluster.spec import ROLLBACK_EXIT, USER_ERROR_EXIT
from ..moe.checkpoint.commit import CheckpointError
from ..moe.checkpoint.lease import PATIENCE_S
from ..moe.checkpoint.owner import RUN_VARIABLE
from .chaos.control import VARIABLE
from .config import RESOLVED, RunConfig, dump, load
from .train.elastic import layout_for
from .train.hardware import make_deterministic, rank_device
from .train.log import Listener
from .train.loop import BeforeStep, Training
from .train.preempt import Preemption
from .train.process_group import process_group
from .train.progress import Display
from .train.records import to_json
from .train.rollback import RollBackError
from .train.sole import sole


def main(arguments: list[str] | None = None) -> int:
    """Run one rank; returns the exit code: 0 also after SIGTERM, when the state is saved, 2 for a
    user's mistake, 3 to be started again, from the checkpoint before a step that went wrong."""
    events = EventWriter.from_env()
    parser = argparse.ArgumentParser(prog="moelstrom.launch.worker")
    parser.add_argument("--config", required=True, help="YAML file or recipe")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)
    try:
        config = load(options.config, options.set)
        with _alone(config), _listener(config, events) as listener:
            run(config, [listener], events)
    except UserError as error:
        return _failed(events, error, USER_ERROR_EXIT)
    except RollBackError as error:
        return _failed(events, error, ROLLBACK_EXIT)
    except CheckpointError as error:
        # Perhaps a full disk: no mistake of the config, so a supervisor may try again.
        return _failed(events, error, 1)
    return 0


def _failed(events: EventWriter, error: Exception, code: int) -> int:
    events.emit("error", message=str(error))
    print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def _alone(config: RunConfig) -> AbstractContextManager[None]:
    """Hold the run's folder as `moelstrom train` does, where no such command has started this."""
    first = os.environ.get("RANK", "0") == "0" and RUN_VARIABLE not in os.environ
    return sole(config.folder, PATIENCE_S) if first else nullcontext()


@contextmanager
def _listener(config: RunConfig, events: EventWriter) -> Iterator[Listener]:
    """The supervisor, which shows the run; without one (torchrun, Slurm) rank 0 shows it here."""
    if events.connected or os.environ.get("RANK", "0") != "0":
        yield lambda record: events.emit(**to_json(record))
        return
    with Display(Console(), config.steps, config.log_interval) as display:
        yield display


def run(config: RunConfig, listeners: list[Listener], events: EventWriter) -> bool:
    """Train on this rank; `listeners` get the records of rank 0, `events` every rank's steps.

    With `cluster.elastic` the layout follows the number of ranks that were started. False if
    SIGTERM ended it early, with the state saved. Raises RollBackError.
    """
    device = rank_device()
    if config.engine.deterministic and device.type == "cuda":
        make_deterministic()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    resized = config.cluster.elastic and world != config.layout.world_size
    placed = layout_for(config, world) if resized else config
    with Preemption() as preemption, process_group(device, orderly=(RollBackError,)):
        training = Training(placed, device, listeners, events, preemption, _faults_on_purpose())
        if training.channel.log:
            training.channel.log.check()
            _publish(config)
        return training.run()


def _faults_on_purpose() -> BeforeStep | None:
    """What `moelstrom chaos` does to this rank before each step."""
    if VARIABLE not in os.environ:
        return None
    from .chaos.hook import Hook

    return Hook.from_env(int(os.environ.get("RANK", "0"))).before_step


def _publish(config: RunConfig) -> None:
    """Leave the resolved config in the run's folder: only now is it known to fit what is there."""
    pending = config.folder / f".{RESOLVED}.pending"
    pending.write_text(dump(config), encoding="utf-8")
    pending.rename(config.folder / RESOLVED)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # On a busy machine torch and the interpreter take seconds to end, without a beat: a supervisor
    # would take that for a stopped process, and start a finished run again.
    os._exit(code)
