"""Two runs on one folder: the second is refused and told by whom, with and without Ray and by
torchrun; after a kill the next one goes on at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch_runs import losses, make_dataset, write_config

from moelstrom.launch.train.log import LOG_NAME
from moelstrom.moe.checkpoint.reader import choose

TRAIN = ["-c", "from moelstrom.launch.cli import main; main()", "train"]
WORKER = ["-m", "moelstrom.launch.worker", "--config"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", *WORKER]
ALONE = {"layout": {"dp": 1, "ep": 1}, "checkpoint": {"interval": 5, "keep": 1}}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command on a config; whatever still runs is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(words: list[str], config: Path, **more: str) -> "subprocess.Popen[str]":
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300", **more}
        command = [sys.executable, *words, str(config)]
        error = subprocess.PIPE
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=error, text=True, cwd=tmp_path
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def config(folder: Path, data: Path, name: str, launcher: str, steps: int) -> Path:
    """The same run under another launcher, or for more steps."""
    sections = {**ALONE, "steps": steps, "cluster": {"launcher": launcher, "max_restarts": 0}}
    made = write_config(folder, data, folder / "run", **sections)
    return made.rename(folder / f"{name}.yaml")


def until_step(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    while max(losses(run), default=0) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def left(run: Path) -> dict[str, bytes]:
    """What a refused start must not have touched."""
    return {name: (run / name).read_bytes() for name in ("config.yaml", "workers/config.yaml")}


def leases(run: Path) -> list[int]:
    """The leases of the records, in their order."""
    lines = (run / LOG_NAME).read_text().splitlines()
    return [json.loads(line)["lease"] for line in lines]


def test_the_second_is_refused_and_the_next_takes_over(tmp_path: Path, start: Start) -> None:
    data, run = make_dataset(tmp_path), tmp_path / "run"
    first = start(TRAIN, config(tmp_path, data, "first", "none", 10**6))
    until_step(run, 6, first)
    before = left(run)
    seconds = {
        launcher: start(words, config(tmp_path, data, launcher, launcher, 7))
        for launcher, words in {"none": TRAIN, "ray": TRAIN}.items()
    }
    seconds["worker"] = start(WORKER, config(tmp_path, data, "worker", "none", 7))
    torchrun = start(TORCHRUN, config(tmp_path, data, "torchrun", "none", 7))
    words = f"output: {run}: process {first.pid} of user"
    for second in seconds.values():
        error = second.communicate()[1]
        assert second.returncode == 2 and words in error and "Traceback" not in error
    # torchrun's own code is 1 for any failure; it names its worker's.
    error = torchrun.communicate()[1]
    assert torchrun.returncode == 1 and words in error and "exitcode  : 2" in error
    assert left(run) == before and set(leases(run)) == {1}
    assert first.poll() is None
    first.kill()
    first.wait()
    done = max(losses(run))
    last = start(TRAIN, config(tmp_path, data, "last", "none", done + 3))
    assert last.wait() == 0, last.communicate()
    numbers = leases(run)
    assert numbers == sorted(numbers) and set(numbers) == {1, 2}
    assert choose(run / "checkpoints", lambda text: pytest.fail(text)) is not None


def test_a_group_that_was_cut_off_writes_nothing_when_it_wakes(
    tmp_path: Path, start: Start
) -> None:
    """A stopped worker, and the next group of the same command: the older one is shut out by the
    disk alone."""
    data, run = make_dataset(tmp_path), tmp_path / "run"
    endless = config(tmp_path, data, "endless", "none", 10**6)
    old = start(WORKER, endless, MOELSTROM_RUN="r", MOELSTROM_RESTART="0")
    until_step(run, 6, old)
    old.send_signal(signal.SIGSTOP)
    new = start(WORKER, endless, MOELSTROM_RUN="r", MOELSTROM_RESTART="1")
    until_step(run, max(losses(run)) + 10, new)
    old.send_signal(signal.SIGCONT)
    error = old.communicate()[1]
    assert old.returncode == 2
    assert f"no longer this run's: process {new.pid} of user" in error
    until_step(run, max(losses(run)) + 10, new)
    numbers = leases(run)
    assert numbers == sorted(numbers) and set(numbers) == {1, 2}
    late = start(WORKER, endless, MOELSTROM_RUN="r", MOELSTROM_RESTART="0")
    assert late.wait() == 2 and new.poll() is None


@pytest.mark.slow
def test_under_ray(tmp_path: Path, start: Start) -> None:
    data, run = make_dataset(tmp_path), tmp_path / "run"
    first = start(TRAIN, config(tmp_path, data, "first", "ray", 10**6))
    until_step(run, 6, first)
    before = left(run)
    for launcher in ("none", "ray"):
        second = start(TRAIN, config(tmp_path, data, launcher, launcher, 7))
        error = second.communicate()[1]
        assert second.returncode == 2 and f"output: {run}: process {first.pid} of user" in error
    assert left(run) == before
    first.kill()
    first.wait()
    # Its workers may take a moment to go.
    last = start(TRAIN, config(tmp_path, data, "last", "none", max(losses(run)) + 50))
    error = last.communicate()[1]
    assert last.returncode == 0, error
    numbers = leases(run)
    assert numbers == sorted(numbers) and set(numbers) == {1, 2}
