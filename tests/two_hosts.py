"""Two network namespaces as two hosts, each with its own Ray node, one cluster."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed"),
]
"""For every test that uses them."""
RAY = str(Path(sys.executable).with_name("ray"))
HEAD, OTHER, PORT = "10.231.77.1", "10.231.77.2", 6379


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
        self.memory = [folder / f"memory-{side}" for side in "ab"]
        self.nodes: list[subprocess.Popen[bytes]] = []

    def make(self) -> None:
        for name, memory in zip(self.names, self.memory, strict=True):
            ip("netns", "add", name)
            memory.mkdir()
        a, b = self.names
        ip("-n", a, "link", "add", "moela", "type", "veth", "peer", "name", "moelb", "netns", b)
        for name, link, address in ((a, "moela", HEAD), (b, "moelb", OTHER)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")

    def start(self, host: int, address: str, *options: str) -> None:
        command = [RAY, "start", "--block", "--disable-usage-stats", "--num-cpus=2"]
        command += [f"--node-ip-address={address}", "--object-store-memory=100000000", *options]
        # Each host its own memory for copies of checkpoints, as two machines have.
        env = {**self.env, "MOELSTROM_MEMORY": str(self.memory[host])}
        self.nodes.append(
            subprocess.Popen(self.inside(host, command), env=env, stdout=subprocess.DEVNULL)
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


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Both hosts with a Ray node each; `folder` receives the token."""
    hosts = Hosts(folder)
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
