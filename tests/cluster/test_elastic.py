"""A host that is cut off and comes back, with the workers' groups that follow it."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from two_hosts import HEAD, MARKS, OTHER, Hosts, ip, two_hosts, wait_for_nodes

pytestmark = MARKS

DRIVER = """
import json, os, sys
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.spec import WorkerSpec
from moelstrom.cluster.supervisor import run_group

config = ClusterConfig(address="10.231.77.1:6379", **json.loads(sys.argv[2]))
size = int(sys.argv[3])
spec = WorkerSpec((sys.executable, sys.argv[1]), size, tuple(range(size, 0, -1)))

events = os.fdopen(int(sys.argv[4]), "w")  # Ray tells of lost nodes on stdout.

def show(rank, event):
    print(json.dumps([rank, event]), file=events, flush=True)

sys.exit(run_group(spec, config, on_event=show).exit_code)
"""

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from moelstrom.cluster.events import EventWriter

writer = EventWriter.from_env()
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
step = 0
while not asked:
    if Path("stop").exists():
        sys.exit(0)
    step += 1
    writer.emit("step", step=step, size=int(size))
    with open(f"steps-{os.getpid()}", "a") as file:
        print(time.time(), file=file)
    time.sleep(0.05)
writer.emit("preempted", step=step)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        wait_for_nodes(hosts)
        yield hosts


class Driven:
    """A run whose events are read one by one."""

    def __init__(self, hosts: Hosts, folder: Path, size: int, **config: Any) -> None:
        path = folder / "program.py"
        path.write_text(textwrap.dedent(PROGRAM))
        read, write = os.pipe()
        command = [sys.executable, "-c", DRIVER, str(path), json.dumps(config), str(size)]
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            hosts.inside(0, [*command, str(write)]), env=hosts.env, cwd=folder, pass_fds=[write]
        )
        os.close(write)
        self._lines = os.fdopen(read)

    def until(self, **wanted: Any) -> dict[str, Any]:
        """Read to an event with these fields."""
        for line in self._lines:
            self.events.append(json.loads(line)[1])
            if wanted.items() <= self.events[-1].items():
                return self.events[-1]
        raise AssertionError(f"no event {wanted}: {self.phases()}")

    def phases(self) -> list[str]:
        return [event["phase"] for event in self.events if event["kind"] == "timeline"]

    def spawned(self, restart: int) -> dict[int, str]:
        """Pids of an attempt and their nodes."""
        found = [e for e in self.events if e["kind"] == "spawned" and e["restart"] == restart]
        return {event["pid"]: event["node"] for event in found}

    def finish(self) -> None:
        (self.folder / "stop").touch()
        self.until(phase="ended")
        assert self.process.wait(30) == 0


def link(hosts: Hosts, state: str) -> None:
    ip("-n", hosts.names[0], "link", "set", "moela", state)


def test_a_group_shrinks_and_grows_with_a_cut_off_host(hosts: Hosts, tmp_path: Path) -> None:
    run = Driven(hosts, tmp_path, 2, cpus_per_worker=2, elastic=True, rejoin_wait_s=1)
    try:
        run.until(kind="step", step=10, size=2)
        assert set(run.spawned(0).values()) == {HEAD, OTHER}
        link(hosts, "down")
        cut = time.time()
        found = run.until(phase="detected")
        assert found["time"] - cut < 10
        scaled = run.until(phase="scaled")
        assert (scaled["before"], scaled["ranks"]) == (2, 1)
        first = run.until(kind="step", size=1)
        assert first["time"] - cut < 20
        assert set(run.spawned(1).values()) == {HEAD}
        # The one on the lost host ends by itself.
        orphan = next(pid for pid, node in run.spawned(0).items() if node == OTHER)
        wait_gone(orphan, cut + 16)
        run.until(kind="step", step=20, size=1)
        link(hosts, "up")
        run.until(phase="preempted")
        scaled = run.until(phase="scaled")
        assert (scaled["before"], scaled["ranks"]) == (1, 2)
        run.until(kind="step", step=5, size=2)
        assert set(run.spawned(2).values()) == {HEAD, OTHER}
        run.finish()
    finally:
        link(hosts, "up")
        run.process.kill()


def wait_gone(pid: int, deadline: float) -> None:
    while psutil.pid_exists(pid):
        assert time.time() < deadline, "an orphan goes on"
        time.sleep(0.1)


def test_a_spare_takes_a_lost_place(hosts: Hosts, tmp_path: Path) -> None:
    """And the lost one, once it can be had again, is the next spare."""
    run = Driven(hosts, tmp_path, 1, spare_workers=1)
    try:
        nodes = []
        for restart in range(3):
            # Time for the spare.
            run.until(kind="step", step=120, size=1)
            ((pid, node),) = run.spawned(restart).items()
            nodes.append(node)
            psutil.Process(pid).parent().kill()
        assert nodes in ([HEAD, OTHER, HEAD], [OTHER, HEAD, OTHER])
        assert run.until(phase="regrouped", restart=3)["seconds"] < 3
        run.finish()
    finally:
        run.process.kill()
