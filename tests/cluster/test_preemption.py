"""SIGTERM of the supervisor's process: the workers save and leave, or everything is killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

DRIVER = """
import json, sys
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.spec import WorkerSpec
from moelstrom.cluster.supervisor import run_group

def show(rank, event):
    print(json.dumps([rank, event]), flush=True)

config = ClusterConfig(preempt_grace_s=float(sys.argv[2]))
outcome = run_group(WorkerSpec((sys.executable, sys.argv[1]), 2), config, on_event=show)
print(json.dumps([None, {"kind": "outcome", "message": outcome.message,
                         "preempted": outcome.preempted, "exit_code": outcome.exit_code}]))
"""

PROGRAM = """
import signal, sys, time
from moelstrom.cluster.events import EventWriter

writer = EventWriter.from_env()
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
step = 0
while not asked or STUBBORN:
    step += 1
    writer.emit("step", step=step)
    time.sleep(0.05)
time.sleep(1.0)
writer.emit("preempted", step=step)
"""


def start(folder: Path, stubborn: bool, grace_s: float) -> "subprocess.Popen[str]":
    path = folder / "program.py"
    path.write_text(PROGRAM.replace("STUBBORN", str(stubborn)))
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(path), str(grace_s)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )


def until_step(driver: "subprocess.Popen[str]", step: int) -> list[int]:
    """Read until both ranks have done a step; returns the workers' pids."""
    assert driver.stdout is not None
    pids, there = [], set()
    for line in driver.stdout:
        rank, event = json.loads(line)
        if event["kind"] == "spawned":
            pids.append(event["pid"])
        if event.get("step") == step:
            there.add(rank)
        if there == {0, 1}:
            return pids
    raise AssertionError("it ended before")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_workers_save_and_the_run_ends_well(number: signal.Signals, tmp_path: Path) -> None:
    """On Ctrl-C too."""
    driver = start(tmp_path, stubborn=False, grace_s=30)
    try:
        until_step(driver, 5)
        driver.send_signal(number)
        output = driver.communicate(timeout=60)[0]
    finally:
        driver.kill()
    events = [event for _, event in map(json.loads, output.splitlines())]
    assert driver.returncode == 0
    assert len([event for event in events if event["kind"] == "preempted"]) == 2
    outcome = events[-1]
    assert (outcome["exit_code"], outcome["preempted"]) == (0, True)
    assert "the same command goes on" in outcome["message"]
    phases = [event["phase"] for event in events if event["kind"] == "timeline"]
    assert phases == ["preempted", "ended"]


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_workers_that_stay_are_killed(tmp_path: Path, again: bool) -> None:
    """After the grace period, or at once on a second SIGTERM."""
    driver = start(tmp_path, stubborn=True, grace_s=60 if again else 1)
    try:
        pids = until_step(driver, 5)
        driver.send_signal(signal.SIGTERM)
        if again:
            time.sleep(1.5)
            driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=40)
    finally:
        driver.kill()
    assert driver.returncode == 143
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert psutil.wait_procs(left, timeout=10)[1] == []
