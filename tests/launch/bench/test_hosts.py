"""The collectives benchmark over two hosts of one Ray cluster."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_hosts import HEAD, MARKS, PORT, Hosts, two_hosts, wait_for_nodes

from moelstrom.collectives_bench.schema import read

pytestmark = MARKS
MAIN = "from moelstrom.launch.cli import main; main()"
SETTINGS = [
    "ops=[all_reduce, all_to_all_v, send_recv]",
    "max_bytes=256KiB",
    "factor=16",
    "groups=[world, node, rail, pairs]",
    "loads=[balanced, 'zipf:1.0']",
    "cluster.strategy=SPREAD",
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def bench(hosts: Hosts, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", MAIN, "bench", "collectives", "--nproc", "4", "--out", "o"]
    command += ["--address", f"{HEAD}:{PORT}", *(w for s in SETTINGS for w in ("--set", s)), *words]
    return subprocess.run(
        hosts.inside(0, command),
        env={**hosts.env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=240,
    )


def test_a_sweep_over_two_hosts(hosts: Hosts, tmp_path: Path) -> None:
    wait_for_nodes(hosts)
    ran = bench(hosts, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = read(tmp_path / "o/report.json")
    assert report.ended == "complete"
    assert [host.ranks for host in report.hosts] == [[0, 1], [2, 3]]
    groups = {(c.group, tuple(c.ranks)) for c in report.collectives}
    assert {("world", (0, 1, 2, 3)), ("node", (0, 1)), ("rail", (0, 2))} <= groups
    pairs = {ranks for group, ranks in groups if group.startswith("pairs")}
    assert len(pairs) == 6
    assert all(c.wrong == 0 for c in report.collectives if c.op != "barrier")
    assert {c.load for c in report.collectives if c.op == "all_to_all_v"} == {
        "balanced",
        "zipf:1.0",
    }
    assert (tmp_path / "o/links.png").exists()
