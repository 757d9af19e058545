"""The benchmark's worker: a plain `torch.distributed` program that finds its place in env://.

Ray starts it by default; `torchrun -m moelstrom.launch.bench.worker collectives --config my.yaml`
works as well, and so does `python -m` of it as one process without any launcher.
"""

import argparse
import json
import os
import sys
import traceback
from typing import Any

from rich.console import Console

from ... import UserError
from ...cluster.events import EventWriter
from ...cluster.spec import USER_ERROR_EXIT
from . import config as bench_config
from .config import Run


def main(arguments: list[str] | None = None) -> int:
    """Run one rank; returns the exit code (2 for a user's mistake)."""
    events = EventWriter.from_env()
    parser = argparse.ArgumentParser(prog="moelstrom.launch.bench.worker")
    parser.add_argument("kind", choices=list(bench_config.RUNS))
    parser.add_argument("--config", help="YAML file; none: all defaults")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", type=json.loads, help="the config itself")
    options = parser.parse_args(arguments)
    try:
        return _run(_load(options), options.kind, events)
    except UserError as error:
        events.emit("error", message=str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR_EXIT
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        events.emit("error", message=first)
        return 1


def _load(options: argparse.Namespace) -> Run:
    if options.json is not None:
        return bench_config.checked(bench_config.RUNS[options.kind], "--json", options.json)
    return bench_config.load(options.kind, options.config, options.set)


def _run(run: Run, kind: bench_config.Kind, events: EventWriter) -> int:
    # Imported here: torch takes seconds, in which the supervisor hears our beat already.
    from .measure import measure

    if events.connected:
        measure(run, events.emit)
        return 0
    if os.environ.get("RANK", "0") != "0":
        measure(run, _ignore)
        return 0
    # Without a supervisor (torchrun, Slurm) rank 0 shows the run and keeps its report.
    from .report import finish, prepare
    from .run import run_here

    console, folder = Console(), bench_config.folder_of(kind, run)
    prepare(folder)
    return finish(run_here(kind, run, console), folder, console)


def _ignore(kind: str, **fields: Any) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
