"""One benchmark from its start to its report, in this process or under Ray."""

import shlex
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from ... import UserError
from ...cluster.spec import USER_ERROR_EXIT, Event, Outcome, WorkerSpec
from ...cluster.supervisor import run_group
from ...collectives_bench.report.collect import Collector
from ...collectives_bench.report.live import LiveView
from ...collectives_bench.schema import BenchReport
from .config import COMPLETE, REPORT, CollectivesRun, Kind, Run, folder_of, own_config
from .measure import measure

INTERRUPTED = "interrupted"
MARGIN_S = 60.0
"""The workers' own time-out comes first by this much: it knows which rank was missing."""


class ReportRecorder:
    """Shows a run's events, and keeps its report."""

    def __init__(self, kind: Kind, run: Run, console: Console) -> None:
        self.collector = Collector(_initial(kind, run), folder_of(kind, run) / REPORT)
        self._view = LiveView(console, kind)

    def __enter__(self) -> "ReportRecorder":
        self._view.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._view.__exit__(*error)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.collector(event)
        self._view(event)

    def emit(self, kind: str, **fields: Any) -> None:
        """Take one event of this process."""
        self({"kind": kind, **fields})

    def fail(self, reason: str) -> BenchReport:
        """The report of a run that failed at what it measured last."""
        return self.collector.end(f"failed at {self.collector.at}: {reason}")


def _initial(kind: Kind, run: Run) -> BenchReport:
    return BenchReport(
        kind=kind,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        backend="",
        world_size=0,
        hosts=[],
        versions={},
        config=own_config(run).model_dump(mode="json"),
    )


def run_here(kind: Kind, run: Run, console: Console) -> BenchReport:
    """Measure as rank 0 of env://, or as the one rank; the report also of a run that failed."""
    with ReportRecorder(kind, run, console) as recorder:
        try:
            measure(run, recorder.emit)
        except KeyboardInterrupt:
            return recorder.collector.end(INTERRUPTED)
        except UserError:
            raise
        # Whatever it was, the results so far are kept.
        except Exception as error:
            traceback.print_exc()
            return recorder.fail(f"rank 0: {error}")
        return recorder.collector.end(COMPLETE)


def run_under_ray(kind: Kind, run: Run, console: Console) -> BenchReport:
    """Start the ranks by Ray and watch them; the report also of a run that failed.

    UserError where no rank could begin (no cluster, no room) or one met a user's mistake.
    """
    command = (sys.executable, "-P", "-m", "moelstrom.launch.bench.worker", kind)
    # The config itself, so that no other node needs the file.
    spec = WorkerSpec((*command, "--json", run.model_dump_json()), run.ranks)
    with ReportRecorder(kind, run, console) as recorder:

        def on_event(rank: int | None, event: Event) -> None:
            recorder(event)

        try:
            logs = folder_of(kind, run) / "workers"
            outcome = run_group(spec, _patient(run), on_event=on_event, log_dir=logs)
        except KeyboardInterrupt:
            return recorder.collector.end(INTERRUPTED)
        except SystemExit:
            recorder.fail("terminated")
            raise
        if outcome.exit_code == USER_ERROR_EXIT:
            raise UserError(outcome.message)
        if outcome.exit_code:
            return recorder.fail(_cause(outcome))
        return recorder.collector.end(COMPLETE)


def _patient(run: Run) -> Any:
    if not isinstance(run, CollectivesRun):
        return run.cluster
    limit = max(run.cluster.progress_timeout_s, run.timeout_s + MARGIN_S)
    return run.cluster.model_copy(update={"progress_timeout_s": limit})


def _cause(outcome: Outcome) -> str:
    faults = [event["reason"] for event in outcome.timeline if event.get("phase") == "fault"]
    return faults[-1] if faults else outcome.message
