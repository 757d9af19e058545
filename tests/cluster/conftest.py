"""One local Ray for the tests of this folder, and a way to run a small program under it."""

import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from moelstrom.cluster.backends.ray.session import ray_session
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.spec import Event, Outcome, WorkerSpec
from moelstrom.cluster.supervisor import run_group

PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from moelstrom.cluster.events import EventWriter

writer = EventWriter.from_env()
rank = int(os.environ["RANK"])
restart = int(os.environ["MOELSTROM_RESTART"])

def steps(count):
    for step in range(count):
        writer.emit("step", step=step)
        time.sleep(0.05)
"""


@dataclass
class Ran:
    """An ended run, with all events in order of arrival."""

    outcome: Outcome
    events: list[tuple[int | None, Event]]

    def of_kind(self, kind: str) -> list[Event]:
        return [event for _, event in self.events if event["kind"] == kind]

    def phases(self) -> dict[str, Event]:
        """The last occurrence of each phase."""
        return {event["phase"]: event for event in self.outcome.timeline}


Run = Callable[..., Ran]
OnEvent = Callable[[int | None, Event], None]


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    with ray_session(ClusterConfig(), world_size=2):
        yield


@pytest.fixture
def run(local_ray: None, tmp_path: Path) -> Run:
    """Runs a program on two ranks; afterwards none of its processes may be left."""

    def run_program(
        body: str, on_event: OnEvent | None = None, env: dict[str, str] | None = None, **config: Any
    ) -> Ran:
        events: list[tuple[int | None, Event]] = []

        def take(rank: int | None, event: Event) -> None:
            events.append((rank, event))
            if on_event is not None:
                on_event(rank, event)

        spec = WorkerSpec(write_program(tmp_path, body), 2)
        settings = ClusterConfig.model_validate({"max_restarts": 1, "env": env or {}, **config})
        outcome = run_group(spec, settings, on_event=take, log_dir=tmp_path / "log")
        ran = Ran(outcome, events)
        assert_gone([event["pid"] for event in ran.of_kind("spawned")])
        return ran

    return run_program


def write_program(folder: Path, body: str) -> tuple[str, ...]:
    path = folder / "program.py"
    path.write_text(PRELUDE + textwrap.dedent(body))
    return (sys.executable, str(path))


def assert_gone(pids: list[int], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, f"processes left: {left}"
        time.sleep(0.05)
