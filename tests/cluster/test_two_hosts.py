"""Groups of workers over two hosts."""

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_hosts import HEAD, MARKS, OTHER, Hosts, two_hosts, wait_for_nodes

pytestmark = MARKS

DRIVER = """
import json, sys
from pathlib import Path
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.spec import WorkerSpec
from moelstrom.cluster.supervisor import run_group

config = ClusterConfig(address="10.231.77.1:6379", **json.loads(sys.argv[2]))
spec = WorkerSpec((sys.executable, sys.argv[1]), 2)

def show(rank, event):
    print(json.dumps([rank, event]), flush=True)

sys.exit(run_group(spec, config, on_event=show).exit_code)
"""

ALL_REDUCE = """
import os
import torch
import torch.distributed as dist
from moelstrom.cluster.events import EventWriter

writer = EventWriter.from_env()
dist.init_process_group("gloo")
value = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(value)
writer.emit("sum", value=value.item(), node=os.environ["NODE_RANK"])
dist.destroy_process_group()
"""

STEPS = """
import os, time
from moelstrom.cluster.events import EventWriter

writer = EventWriter.from_env()
for step in range(3 if os.environ["MOELSTROM_RESTART"] != "0" else 10_000):
    writer.emit("step", step=step)
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def start_driver(
    hosts: Hosts, folder: Path, program: str, **config: object
) -> "subprocess.Popen[str]":
    path = folder / "program.py"
    path.write_text(textwrap.dedent(program))
    command = [sys.executable, "-c", DRIVER, str(path), json.dumps(config)]
    return subprocess.Popen(
        hosts.inside(0, command), env=hosts.env, stdout=subprocess.PIPE, text=True, cwd=folder
    )


def test_one_rank_on_each_host(hosts: Hosts, tmp_path: Path) -> None:
    wait_for_nodes(hosts)
    driver = start_driver(hosts, tmp_path, ALL_REDUCE, strategy="STRICT_SPREAD", max_restarts=0)
    output = driver.communicate(timeout=120)[0]
    events = [event for _, event in map(json.loads, output.splitlines())]
    assert driver.returncode == 0, output
    assert {e["node"] for e in events if e["kind"] == "spawned"} == {HEAD, OTHER}
    sums = sorted((e["node"], e["value"]) for e in events if e["kind"] == "sum")
    assert sums == [("0", 3.0), ("1", 3.0)]


def test_a_lost_host(hosts: Hosts, tmp_path: Path) -> None:
    """Its rank moves to the host that is left."""
    wait_for_nodes(hosts)
    driver = start_driver(hosts, tmp_path, STEPS, strategy="SPREAD", max_restarts=1)
    assert driver.stdout is not None
    events = []
    for line in driver.stdout:
        if not line.startswith("["):
            continue  # Ray tells of the lost node in its own words.
        events.append(json.loads(line)[1])
        if events[-1]["kind"] == "step" and events[-1]["step"] == 5:
            for process in hosts.processes(1):
                if process.name() == "raylet":
                    process.send_signal(signal.SIGKILL)
    assert driver.wait(60) == 0, events
    spawned = [event for event in events if event["kind"] == "spawned"]
    assert {event["node"] for event in spawned if event["restart"] == 0} == {HEAD, OTHER}
    assert {event["node"] for event in spawned if event["restart"] == 1} == {HEAD}
    reasons = [event["reason"] for event in events if event.get("phase") == "fault"]
    assert len(reasons) == 1, reasons
