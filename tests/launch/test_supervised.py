"""`moelstrom train` with workers under Ray: roll-backs, and SIGTERM to the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launch_runs import final_state, losses, make_dataset, write_config

from moelstrom.launch.train.log import select
from moelstrom.launch.train.records import PreemptedRecord
from moelstrom.launch.train.rollback import rollbacks

COMMAND = [sys.executable, "-c", "from moelstrom.launch.cli import main; main()", "train"]


def start(config: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.PIPE
    return subprocess.Popen([*COMMAND, str(config)], env=env, stdout=out, stderr=out, text=True)


@pytest.mark.slow
def test_rolled_back_pre_empted_and_finished(tmp_path: Path) -> None:
    """Two ranks with copies in memory. The first process rolls back at a spike and leaves on
    SIGTERM after step 15; the second ends the run. Bitwise the one that knew of the samples."""
    data = make_dataset(tmp_path)
    sections = {
        "health": {"spike": "rollback", "spike_window": 6, "spike_factor": 1.15},
        "checkpoint": {"interval": 5, "replicas": True},
        "cluster": {"max_restarts": 0},
        "steps": 40,
    }
    config = write_config(tmp_path, data, tmp_path / "run", **sections)
    process = start(config)
    while not any(step >= 15 for step in losses(tmp_path / "run")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=180)
    assert process.returncode == 0, error
    assert "the same command goes on" in out and "Traceback" not in error
    left = [r.step for r in select(tmp_path / "run", PreemptedRecord)]
    assert len(left) == 1 and left[0] >= 15
    assert start(config).communicate(timeout=240)[0]
    assert rollbacks(tmp_path / "run")
    told = tmp_path / "told"
    told.mkdir()
    (told / "health.jsonl").write_bytes((tmp_path / "run" / "health.jsonl").read_bytes())
    straight = start(write_config(tmp_path, data, told, **sections))
    assert straight.wait(240) == 0
    assert losses(told) == losses(tmp_path / "run")
    states = final_state(told, 40), final_state(tmp_path / "run", 40)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
