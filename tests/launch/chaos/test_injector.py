"""The injector against real processes, files and a real full disk; the run's events are given."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moelstrom import UserError
from moelstrom.cluster.events import Spawned, wire
from moelstrom.launch.chaos import actions, control
from moelstrom.launch.chaos.injector import Injector
from moelstrom.launch.chaos.scenario import Scenario
from moelstrom.moe.checkpoint.folder import MANIFEST, MARKER, step_folder

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
Make = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Make]:
    """Makes processes that carry the control folder as a worker does."""
    made: list[subprocess.Popen[bytes]] = []

    def make(folder: Path = tmp_path) -> "subprocess.Popen[bytes]":
        env = {**os.environ, control.VARIABLE: str(folder)}
        made.append(subprocess.Popen(SLEEP, env=env))
        return made[-1]

    yield make
    for process in made:
        process.kill()
        process.wait()


class Run:
    """An injector, and the events of a run of one rank on this machine."""

    def __init__(self, folder: Path, *faults: dict[str, Any], **more: Any) -> None:
        self.said: list[str] = []
        scenario = Scenario.model_validate({"faults": faults, **more})
        self.injector = Injector(scenario, folder, folder / "saves", self.said.append)
        (folder / "saves").mkdir(exist_ok=True)
        self.restart = -1

    def spawn(self, pid: int) -> None:
        self.restart += 1
        event = Spawned(time.time(), pid, "127.0.0.1", (), self.restart)
        self.injector.on_event(0, wire(event))

    def step(self, step: int) -> None:
        self.injector.on_event(0, {"kind": "step", "time": time.time(), "step": step})


def wait_for(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state(process: "subprocess.Popen[bytes]") -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_kill_waits_for_its_step_and_the_next_for_its_end(tmp_path: Path, worker: Make) -> None:
    run = Run(tmp_path, {"kind": "kill", "at_step": 5}, {"kind": "stop", "at_step": 6})
    first, second = worker(), worker()
    with run.injector:
        run.spawn(first.pid)
        run.step(4)
        time.sleep(0.1)
        assert first.poll() is None
        run.step(5)
        assert first.wait(20) == -signal.SIGKILL
        run.spawn(second.pid)
        for step in (3, 6, 7):  # Past the second's moment, not past the first's end.
            run.step(step)
            time.sleep(0.05)
            assert state(second) != "T"
        run.step(8)
        wait_for(lambda: state(second) == "T")
    assert [(done.kind, done.step) for done in run.injector.done] == [("kill", 5), ("stop", 8)]
    assert run.said[0].startswith("chaos  kill  step 5")


def test_a_strangers_process_is_left_alone(tmp_path: Path, worker: Make) -> None:
    """A process id may be another's by now."""
    stranger = worker(tmp_path / "other")
    actions.send(stranger.pid, "127.0.0.1", actions.KILL, tmp_path)
    time.sleep(0.2)
    assert stranger.poll() is None


FAR = """
import sys
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.backends.ray.session import ray_session
from moelstrom.launch.chaos import actions

with ray_session(ClusterConfig(), world_size=1):
    import ray

    for pid in sys.argv[2:]:
        actions._send_there(int(pid), ray.util.get_node_ip_address(), actions.KILL, sys.argv[1])
"""


def test_a_worker_of_another_machine_gets_its_signal_from_there(
    tmp_path: Path, worker: Make
) -> None:
    """By a Ray task on that node, which here is this machine's own."""
    ours, stranger = worker(), worker(tmp_path / "other")
    pids = [str(stranger.pid), str(ours.pid)]
    subprocess.run([sys.executable, "-c", FAR, str(tmp_path), *pids], check=True, timeout=120)
    assert ours.wait(20) == -signal.SIGKILL and stranger.poll() is None


def test_inner_faults_are_offered_and_heard_of(tmp_path: Path, worker: Make) -> None:
    run = Run(tmp_path, {"kind": "nan", "at_step": 7})
    with run.injector:
        run.spawn(worker().pid)
        wait_for(lambda: control.armed(tmp_path, 0, 7))
        assert control.armed(tmp_path, 0, 6) is None
        path, fields = control.armed(tmp_path, 0, 7) or (Path(), {})
        control.claim(path, fields, 7)
        run.step(10)
        wait_for(lambda: run.injector.done)
    assert run.injector.done[0].step == 7


def test_what_never_came_is_not_done(tmp_path: Path, worker: Make) -> None:
    run = Run(tmp_path, {"kind": "hang", "at_step": 99}, {"kind": "kill", "at_step": 100})
    with run.injector:
        run.spawn(worker().pid)
        wait_for(lambda: control.armed(tmp_path, 0, 99))
    assert run.injector.done == [] and control.armed(tmp_path, 0, 99) is None


def save(path: Path, step: int) -> Path:
    folder = step_folder(path, step)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(b"m" * 100)
    (folder / "rank-00000.safetensors").write_bytes(bytes(1000))
    (folder / MARKER).write_text("")
    return folder


def test_corrupt_flips_one_bit_of_the_newest_of_two(tmp_path: Path, worker: Make) -> None:
    run = Run(tmp_path, {"kind": "corrupt", "at_step": 1})
    process = worker()
    older = save(tmp_path / "saves", 1)
    with run.injector:
        run.spawn(process.pid)
        run.step(1)
        time.sleep(0.2)
        assert process.poll() is None  # A run's only checkpoint stays whole.
        newer = save(tmp_path / "saves", 2)
        run.step(2)
        assert process.wait(20) == -signal.SIGKILL
    flipped = (newer / "rank-00000.safetensors").read_bytes()
    assert sum(byte.bit_count() for byte in flipped) == 1 and len(flipped) == 1000
    assert (older / "rank-00000.safetensors").read_bytes() == bytes(1000)
    assert (newer / MANIFEST).read_bytes() == b"m" * 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a mount needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_has_no_byte_left_until_it_has(small_disk: Path) -> None:
    target = actions.fill(small_disk)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "more").write_bytes(b"x" * 4096)
    target.unlink()
    (small_disk / "more").write_bytes(b"x" * 4096)


def test_nobodys_whole_disk_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "MOST_FILLED", 0)
    with pytest.raises(UserError, match="put it on one with less than 1 GiB free"):
        actions.fill(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_network_is_healed_also_at_the_end_of_the_run(tmp_path: Path, worker: Make) -> None:
    lost = {"kind": "node_lost", "node": "127.0.0.1", "at_step": 1, "duration_s": 60}
    log = tmp_path / "log"
    say = ["sh", "-c", f"echo $0 {{node}} >> {log}"]
    run = Run(tmp_path, lost, cut=[*say, "cut"], heal=[*say, "heal"])
    with run.injector:
        run.spawn(worker().pid)
        run.step(1)
        wait_for(log.exists)
    assert log.read_text().splitlines() == ["cut 127.0.0.1", "heal 127.0.0.1"]


def test_a_command_that_fails_ends_the_faults_with_a_word(tmp_path: Path, worker: Make) -> None:
    lost = {"kind": "node_lost", "node": "127.0.0.1", "at_step": 1}
    run = Run(tmp_path, lost, cut=["false"], heal=["true"])
    with run.injector:
        run.spawn(worker().pid)
        run.step(1)
        wait_for(lambda: run.injector.problem)
    assert run.injector.problem.startswith("cut, heal: false: ")
