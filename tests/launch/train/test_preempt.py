"""SIGTERM: the step is ended and saved, all ranks leave with 0, and the run goes on bitwise."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launch_runs import final_state, losses, make_dataset, run_here, run_worker, write_config

from moelstrom.launch.train.log import select
from moelstrom.launch.train.preempt import Preemption
from moelstrom.launch.train.records import PreemptedRecord
from moelstrom.moe.checkpoint.reader import complete


def test_the_first_signal_is_heard_the_second_ends_the_process() -> None:
    child = os.fork()
    if child == 0:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            if preemption.wanted:
                os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM


def test_the_handler_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) != before and not preemption.wanted
    assert signal.getsignal(signal.SIGTERM) == before


def preempt(output: Path, command: list[str]) -> "tuple[int, str]":
    """Run, send SIGTERM to one rank's process once step 3 is logged; (exit code, stdout)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while 3 not in losses(output):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_preempted_and_resumed(tmp_path: Path, ranks: int) -> None:
    """Alone, and under torchrun, which passes the signal on to its workers."""
    data = make_dataset(tmp_path)
    one = {"layout": {"dp": ranks, "ep": ranks}, "steps": 40, "checkpoint": {"interval": 0}}
    config = write_config(tmp_path, data, tmp_path / "run", **one)
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    start = [sys.executable, "-m", *(launcher if ranks > 1 else [])]
    command = [*start, "moelstrom.launch.worker", "--config", str(config)]
    code, out = preempt(tmp_path / "run", command)
    (left,) = select(tmp_path / "run", PreemptedRecord)
    assert "saved on SIGTERM; the same command goes on" in out
    assert 3 <= left.step < 40
    assert [folder.name for folder in complete(tmp_path / "run" / "checkpoints")] == [
        f"step-{left.step:08d}"
    ]
    assert code == 0 or ranks > 1
    straight = write_config(tmp_path, data, tmp_path / "straight", **one)
    for again in (config, straight):
        assert run_here(again) if ranks == 1 else run_worker(again, ranks).returncode == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    expected, found = (final_state(tmp_path / name, 40) for name in ("straight", "run"))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
