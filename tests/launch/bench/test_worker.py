"""The benchmark's worker without the command line: torchrun, one process, mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moelstrom.collectives_bench.schema import read

WORKER = "moelstrom.launch.bench.worker"
COLLECTIVES = ["collectives", "--set", "ops=[all_reduce, all_gather, barrier]"]
COLLECTIVES += ["--set", "max_bytes=16KiB", "--set", "factor=4", "--set", "iterations=3"]
HARDWARE = ["hardware", "--set", "benches=[memory]", "--set", "max_bytes=256KiB"]
HARDWARE += ["--set", "budget_s=0.01"]


def worker(folder: Path, *words: str, ranks: int = 0) -> "subprocess.CompletedProcess[str]":
    """Under torchrun; 0 ranks: as one plain process."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(start if ranks else []), "-m", WORKER, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("words", [COLLECTIVES, HARDWARE])
@pytest.mark.parametrize("ranks", [0, 2])
def test_the_same_report_by_any_launcher(words: list[str], ranks: int, tmp_path: Path) -> None:
    ran = worker(tmp_path, *words, "--set", "output=o", ranks=ranks)
    assert ran.returncode == 0, ran.stderr
    report = read(tmp_path / "o/report.json")
    assert report.ended == "complete" and report.world_size == max(1, ranks)
    assert report.kind == words[0]
    assert report.config["max_bytes"] == (16 if words is COLLECTIVES else 256) * 1024
    measured = report.collectives or report.hardware
    assert len(measured) >= 3
    assert (tmp_path / "o/report.html").exists() and (tmp_path / "o/measurements.csv").exists()
    # Rank 0 alone speaks, once.
    assert ran.stdout.count("o/report.json; beside it") == 1


def test_a_mistake_ends_every_rank(tmp_path: Path) -> None:
    ran = worker(tmp_path, "hardware", "--set", "budget_s=-1")
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert ran.stderr.startswith("error: budget_s: -1 does not fit; give more than 0")
