"""Two network namespaces as two hosts, each with its own Ray node, one cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed"),
]

RAY = str(Path(sys.executable).with_name("ray"))
HEAD, OTHER, PORT = "10.231.77.1", "10.231.77.2", 6379

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


class Hosts:
    """Two namespaces joined by a pair of virtual interfaces."""

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.write_text("5" * 64)
        token.chmod(0o600)
        removed = {"RAY_ADDRESS", "RAY_AUTH_TOKEN"}
        self.env = {name: value for name, value in os.environ.items() if name not in removed}
        self.env |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.names = [f"moel{os.getpid()}{side}" for side in "ab"]
        self.nodes: list[subprocess.Popen[bytes]] = []

    def make(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        a, b = self.names
        ip("-n", a, "link", "add", "moela", "type", "veth", "peer", "name", "moelb", "netns", b)
        for name, link, address in ((a, "moela", HEAD), (b, "moelb", OTHER)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")

    def start(self, host: int, address: str, *options: str) -> None:
        command = [RAY, "start", "--block", "--disable-usage-stats", "--num-cpus=2"]
        command += [f"--node-ip-address={address}", "--object-store-memory=100000000", *options]
        self.nodes.append(
            subprocess.Popen(self.inside(host, command), env=self.env, stdout=subprocess.DEVNULL)
        )

    def inside(self, host: int, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.names[host], *command]

    def processes(self, host: int) -> list[psutil.Process]:
        text = subprocess.run(
            ["ip", "netns", "pids", self.names[host]], capture_output=True, text=True
        ).stdout
        return [psutil.Process(int(pid)) for pid in text.split() if psutil.pid_exists(int(pid))]

    def remove(self) -> None:
        for node in self.nodes:
            node.terminate()
        left = [process for host in (0, 1) for process in self.processes(host)]
        for process in psutil.wait_procs(left, timeout=10)[1]:
            process.kill()
        for node in self.nodes:
            node.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name])


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    temp_dir = Path(f"/tmp/moel-hosts-{os.getpid()}")
    try:
        hosts.make()
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={temp_dir}"]
        hosts.start(0, HEAD, *head)
        hosts.start(1, OTHER, f"--address={HEAD}:{PORT}")
        yield hosts
    finally:
        hosts.remove()
        shutil.rmtree(temp_dir, ignore_errors=True)


def start_driver(
    hosts: Hosts, folder: Path, program: str, **config: object
) -> "subprocess.Popen[str]":
    path = folder / "program.py"
    path.write_text(textwrap.dedent(program))
    command = [sys.executable, "-c", DRIVER, str(path), json.dumps(config)]
    return subprocess.Popen(
        hosts.inside(0, command), env=hosts.env, stdout=subprocess.PIPE, text=True, cwd=folder
    )


def wait_for_nodes(hosts: Hosts) -> None:
    code = (
        f"import ray, time; ray.init('{HEAD}:{PORT}', log_to_driver=False)\n"
        "while sum(node['Alive'] for node in ray.nodes()) < 2: time.sleep(0.2)"
    )
    command = hosts.inside(0, [sys.executable, "-c", code])
    deadline = time.monotonic() + 90
    while subprocess.run(command, env=hosts.env, capture_output=True, timeout=90).returncode:
        assert time.monotonic() < deadline, "the two nodes did not join"
        time.sleep(0.5)


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
