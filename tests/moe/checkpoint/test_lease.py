"""One writer to a folder: who is refused, who may take over, and who is shut out."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from moelstrom import UserError
from moelstrom.moe.checkpoint import lease as module
from moelstrom.moe.checkpoint.lease import Lease, LeaseLostError, newest, numbered, take
from moelstrom.moe.checkpoint.owner import Owner, _started


class Holder:
    """Another process; see lease_holder.py."""

    def __init__(self, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("lease_holder.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )

    def ask(self, *words: Any) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def holder() -> Iterator[Callable[..., Holder]]:
    with contextlib.ExitStack() as stack:

        def start(**env: str) -> Holder:
            made = Holder(**env)
            stack.callback(made.kill)
            return made

        yield start


def plant(folder: Path, number: int = 1, **changes: Any) -> Path:
    """A holder as another process would have left it; returns its file."""
    owner = replace(Owner.here(), run="other", started=1, **changes)
    home = folder / ".lease" / "run" / f"{number:08d}"
    home.mkdir(parents=True)
    (home / "owner.json").write_bytes(owner.dump() + b"\ntoken\n")
    return home / "owner.json"


def far(**changes: Any) -> dict[str, Any]:
    return {"boot": "another", "host": "far", "machine": "another", "pid": os.getppid(), **changes}


def test_a_living_holder_is_named_and_a_dead_one_is_followed_at_once(
    tmp_path: Path, holder: Callable[..., Holder]
) -> None:
    first = holder()
    assert first.ask("take", tmp_path, "run", 0) == "1"
    words = rf"output: {tmp_path}: process {first.process.pid} of user .* on host .* is writing"
    with pytest.raises(UserError, match=words):
        take(tmp_path, "run", "output", 0)
    other = take(tmp_path, "records", "output", 0)
    assert other.number == 1
    first.kill()
    began = time.monotonic()
    second = take(tmp_path, "run", "output", 60)
    assert second.number == 2 and time.monotonic() - began < 30
    assert [entry.name for entry in numbered(tmp_path / ".lease" / "run")] == ["00000002"]
    second.check()
    other.check()


def test_every_rank_hears_that_the_checkpoints_are_another_runs(
    tmp_path: Path, holder: Callable[..., Holder], run_ranks: Callable[..., list[Any]]
) -> None:
    """Runs with folders of their own, and one `checkpoint.path`."""
    first = holder()
    first.ask("take", tmp_path, "saves", 0)
    one, other = run_ranks("one", tmp_path, 2)
    words = f"UserError: checkpoint.path: {tmp_path}: process {first.process.pid} of user"
    assert one == other and one.startswith(words)
    assert [entry.name for entry in tmp_path.iterdir()] == [".lease"]
    first.kill()
    assert run_ranks("one", tmp_path, 2) == ["", ""]


def test_a_released_lease_is_free(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    first = holder()
    first.ask("take", tmp_path, "run", 0)
    assert first.ask("release") == "1"
    assert take(tmp_path, "run", "output", 0).number == 2


def test_the_end_of_a_process_is_waited_for(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    """As the workers of a killed command, which take a moment to go."""
    first = holder()
    first.ask("take", tmp_path, "run", 0)
    threading.Timer(0.5, first.kill).start()
    assert take(tmp_path, "run", "output", 300).number == 2


def test_a_newer_group_of_the_same_run_shuts_the_older_out(
    tmp_path: Path, holder: Callable[..., Holder]
) -> None:
    old = holder(MOELSTROM_RUN="r", MOELSTROM_GENERATION="1")
    new = holder(MOELSTROM_RUN="r", MOELSTROM_GENERATION="2")
    other = holder(MOELSTROM_RUN="s", MOELSTROM_GENERATION="9")
    assert old.ask("take", tmp_path, "run", 0) == "1"
    assert old.ask("check") == "1"
    assert "is writing there" in other.ask("take", tmp_path, "run", 0)
    assert new.ask("take", tmp_path, "run", 0) == "2"
    gone = old.ask("check")
    assert gone.startswith("LeaseLostError: ") and f"process {new.process.pid} of user" in gone
    new.kill()
    assert "is writing there" in old.ask("take", tmp_path, "run", 0)
    newer = holder(MOELSTROM_RUN="r", MOELSTROM_GENERATION="2")
    assert newer.ask("take", tmp_path, "run", 0) == "3"


def test_a_process_follows_itself(tmp_path: Path) -> None:
    first = take(tmp_path, "run", "output", 0)
    second = take(tmp_path, "run", "output", 0)
    second.check()
    with pytest.raises(LeaseLostError):
        first.check()
    first.release()
    second.check()


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**22 + 5},
        {"pid": os.getpid()},
        {"boot": "an earlier one"},
    ],
    ids=["pid gone", "pid used again", "rebooted"],
)
def test_dead_on_this_machine(tmp_path: Path, changes: dict[str, Any]) -> None:
    if not Owner.here().machine and "boot" in changes:
        pytest.skip("this machine has no id")
    plant(tmp_path, 7, **changes)
    assert take(tmp_path, "run", "output", 0).number == 8


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(Owner.here(), pid=child.pid, started=_started(child.pid) or 0)
    assert owner.lives()
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert owner.lives() is False
    child.wait()


def test_another_machines_holder_counts_by_the_servers_clock(tmp_path: Path) -> None:
    file = plant(tmp_path, **far())
    long_ago = time.time() - module.LIMIT_S - 1
    os.utime(file, (long_ago, long_ago))
    assert take(tmp_path, "run", "output", 0).number == 2


def test_another_machines_holder_that_renews_is_refused(tmp_path: Path) -> None:
    file, over = plant(tmp_path, **far()), threading.Event()

    def beat() -> None:
        while not over.wait(0.02):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="on host far is writing there"):
            take(tmp_path, "run", "output", 0)
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("shift", [0, 3600])
def test_another_machines_holder_that_has_fallen_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """Also where a clock was set back: it does not look old, but does not renew either."""
    monkeypatch.setattr(module, "LIMIT_S", 0.5)
    file = plant(tmp_path, **far())
    os.utime(file, (time.time() + shift, time.time() + shift))
    began = time.monotonic()
    assert take(tmp_path, "run", "output", 0).number == 2
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"pid": "x"}', b"[" * 100_000])
def test_an_owner_that_cannot_be_read_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 0.3)
    plant(tmp_path).write_bytes(text)
    assert take(tmp_path, "run", "output", 0).number == 2


def test_one_of_many_wins(tmp_path: Path) -> None:
    """Threads with leases of their own, all for the same number, over and over."""
    owner = Owner.here()
    home = tmp_path / ".lease" / "run"
    home.mkdir(parents=True)
    for number in range(1, 40):
        leases = [Lease(tmp_path, "run", "output", owner) for _ in range(8)]
        barrier = threading.Barrier(8)
        won: list[Lease] = []

        def claim(lease: Lease, number: int, barrier: Any, won: list[Lease]) -> None:
            barrier.wait()
            if lease.claim(number):
                won.append(lease)

        threads = [threading.Thread(target=claim, args=(a, number, barrier, won)) for a in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and newest(home) == number
        won[0].check()
    assert [entry.name for entry in home.iterdir()] == ["00000039"]


def test_a_larger_number_alone_shuts_out(tmp_path: Path) -> None:
    """Its holder has not yet removed what is older."""
    lease = take(tmp_path, "run", "output", 0)
    plant(tmp_path, 2)
    with pytest.raises(LeaseLostError, match=r"process .* has taken it over"):
        lease.check()


def test_a_number_of_the_past_cannot_be_won(tmp_path: Path) -> None:
    """A process that slept between its look and its claim."""
    sleepy = Lease(tmp_path, "run", "output", Owner.here())
    plant(tmp_path, 9)
    assert not sleepy.claim(4) and not sleepy.claim(9)
    assert [e.name for e in numbered(tmp_path / ".lease" / "run")] == ["00000009"]


def test_a_late_holder_has_to_win_a_new_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 1e6)
    shift = 0.0
    clock = module._clock
    monkeypatch.setattr(module, "_clock", lambda: clock() + shift)
    late = take(tmp_path, "run", "output", 0)
    shift += module.LIMIT_S + 1
    late.check()
    assert late.number == 2
    shift += module.LIMIT_S + 1
    plant(tmp_path, 3)
    with pytest.raises(LeaseLostError, match="has taken it over"):
        late.check()
    assert newest(tmp_path / ".lease" / "run") == 3


def test_renewals_go_on_and_end_with_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    lease = take(tmp_path, "run", "output", 0)
    file = tmp_path / ".lease" / "run" / "00000001" / "owner.json"
    os.utime(file, (0, 0))
    while file.stat().st_mtime == 0:
        time.sleep(0.01)
    plant(tmp_path, 2)
    shutil.rmtree(file.parent)
    with pytest.raises(LeaseLostError):
        lease.check()
    lease.thread.join()


def test_renewals_end_with_what_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    threads = [take(tmp_path, name, "output", 0).thread for name in ("a", "b")]
    held = take(tmp_path, "c", "output", 0)
    held.release()
    for thread in (*threads, held.thread):
        thread.join()


def test_a_deleted_lease_is_won_again_unless_another_process_was_first(tmp_path: Path) -> None:
    lease = take(tmp_path / "run", "run", "output", 0)
    shutil.rmtree(tmp_path / "run")
    lease.check()
    assert lease.number == newest(tmp_path / "run" / ".lease" / "run") == 2
    shutil.rmtree(tmp_path / "run")
    plant(tmp_path / "run", 2)
    with pytest.raises(LeaseLostError, match=r"process .* has taken it over"):
        lease.check()


def test_a_folder_made_for_nothing_does_not_remain(tmp_path: Path) -> None:
    take(tmp_path / "new", "run", "output", 0).release()
    assert not (tmp_path / "new").exists()
    used = take(tmp_path / "new", "run", "output", 0)
    (tmp_path / "new" / "file").touch()
    used.release()
    (tmp_path / "old").mkdir()
    take(tmp_path / "old", "run", "output", 0).release()
    assert (tmp_path / "new" / "file").exists() and (tmp_path / "old").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"checkpoint\.path: .*file: File exists; give a folder"):
        take(tmp_path / "file", "saves", "checkpoint.path")


def test_owner_round_trip() -> None:
    owner = Owner.here()
    assert Owner.parse(owner.dump()) == owner and owner.lives()
    assert Owner.parse(json.dumps({**asdict(owner), "pid": True}).encode()) is None
