"""The supervisor knows no Ray, and a kind of cluster can come from another package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moelstrom import UserError
from moelstrom.cluster.kinds import CLUSTERS

WITHOUT_RAY = """
import importlib, pkgutil, sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, NoRay())
import moelstrom.cluster
import moelstrom.launch

def modules(package):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name != "moelstrom.cluster.backends.ray":
            yield found.name
            if found.ispkg:
                yield from modules(importlib.import_module(found.name))

names = [*modules(moelstrom.cluster), *modules(moelstrom.launch)]
for name in names:
    importlib.import_module(name)
assert "moelstrom.cluster.supervisor" in names and "moelstrom.launch.chaos.injector" in names
assert "ray" not in sys.modules
"""

DRIVER = """
import json, sys
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.placement import describe_placement
from moelstrom.cluster.spec import WorkerSpec
from moelstrom.cluster.supervisor import run_group

def show(rank, event):
    print(json.dumps([rank, event]), flush=True)

config = ClusterConfig(launcher="here", max_restarts=1)
assert len(describe_placement(2, config)) == 2
outcome = run_group(WorkerSpec((sys.executable, sys.argv[1]), 2), config, on_event=show)
assert "ray" not in sys.modules
sys.exit(outcome.exit_code)
"""

PROGRAM = """
import os, sys
import torch, torch.distributed as dist
from moelstrom.cluster.events import EventWriter

writer = EventWriter.from_env()
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
writer.emit("step", step=1)
if os.environ["MOELSTROM_RESTART"] == "0":
    dist.barrier()
    sys.exit(dist.get_rank())
writer.emit("sum", value=total.item())
"""


def test_nothing_outside_its_folder_imports_ray() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_RAY], check=True, timeout=240)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that holds another package, as pip would have left it."""
    source = Path(__file__).with_name("local_kind.py")
    (tmp_path / "local_kind.py").write_text(source.read_text())
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[moelstrom.clusters]\nhere = local_kind:LocalKind\n")
    return tmp_path


def test_a_kind_from_another_package_runs_a_job(outside: Path) -> None:
    """Two real processes, an all-reduce, and a restart after one of them fails."""
    program = outside / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(program)],
        env={**os.environ, "PYTHONPATH": str(outside)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    events = [event for _, event in map(json.loads, done.stdout.splitlines())]
    phases = [event["phase"] for event in events if event["kind"] == "timeline"]
    assert phases == ["started", "fault", "detected", "killed", "regrouped", "resumed", "ended"]
    assert [event["value"] for event in events if event["kind"] == "sum"] == [3.0, 3.0]
    assert len({event["pid"] for event in events if event["kind"] == "spawned"}) == 4


def test_names_of_kinds() -> None:
    assert "ray" in list(CLUSTERS)
    with pytest.raises(UserError, match="'fog' is none of the clusters: ray"):
        CLUSTERS["fog"]
