"""Which checkpoints go: none before a newer one is durable and verified, none of a newer holder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moelstrom.moe.checkpoint import folder as disk
from moelstrom.moe.checkpoint import reader, retention
from moelstrom.moe.checkpoint.commit import CheckpointError
from moelstrom.moe.checkpoint.lease import Lease, LeaseLostError, take
from moelstrom.moe.checkpoint.reader import choose, complete, verify
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

FILE = "rank-00000.safetensors"


class Run:
    """A saver and what it noted."""

    def __init__(self, path: Path, keep: int, **options: Any) -> None:
        self.path = path
        self.notes: list[str] = []
        options = {"retries": 0, "retry_wait_s": 0, "asynchronous": False, **options}
        config = CheckpointConfig(path=str(path), keep=keep, **options)
        self.saver = Saver(config, 0, 1, lambda e: self.notes.append(e.get("message", "")))

    def save(self, *steps: int) -> None:
        for step in steps:
            self.saver.save(step, [Shard("w", (100,), 0, torch.full((100,), float(step)))], {})


def steps(path: Path) -> list[int]:
    return [folder.stat() and int(folder.name[5:]) for folder in complete(path)]


def flip(path: Path, step: int) -> None:
    file = disk.step_folder(path, step) / FILE
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_what_the_start_refused_counts_for_nothing(tmp_path: Path) -> None:
    """keep 2, steps 4 and 8, 8 damaged: a save of 10 keeps 4."""
    first = Run(tmp_path, 2)
    first.save(4, 8)
    first.saver.close()
    flip(tmp_path, 8)
    second = Run(tmp_path, 2)
    chosen = choose(tmp_path, second.notes.append)
    assert chosen is not None and chosen.name == "step-00000004"
    second.saver.started(4)
    second.save(10)
    assert steps(tmp_path) == [4, 8, 10]
    second.save(12)
    assert steps(tmp_path) == [8, 10, 12]
    second.save(14)
    assert steps(tmp_path) == [8, 12, 14]
    assert verify(disk.step_folder(tmp_path, 12)).step == 12


def test_a_refused_step_that_is_saved_again_counts(tmp_path: Path) -> None:
    run = Run(tmp_path, 1)
    run.save(4)
    flip(tmp_path, 4)
    run.saver.started(-1)
    run.save(4)
    assert len(list(tmp_path.glob("step-00000004.broken-*"))) == 1
    run.save(5)
    assert steps(tmp_path) == [5]


def test_the_last_good_one_outlives_a_newer_one_that_does_not_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives back other bytes than it got."""
    run = Run(tmp_path, 1)
    run.save(1)
    publish = disk.publish

    def spoiled(temporary: Path, final: Path, *rest: Any) -> None:
        publish(temporary, final, *rest)
        flip(tmp_path, disk.step_of(final) or 0)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "publish", spoiled)
        run.save(2, 3)
    assert steps(tmp_path) == [1, 2, 3]
    assert sum("does not count among checkpoint.keep" in note for note in run.notes) == 2
    assert choose(tmp_path, lambda text: None) == disk.step_folder(tmp_path, 1)
    run.save(4)
    assert steps(tmp_path) == [2, 3, 4]
    run.save(5)
    assert steps(tmp_path) == [2, 3, 5]


def test_one_verified_save_serves_for_all_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []

    def spy(folder: Path) -> Any:
        verified.append(folder.name)
        return verify(folder)

    monkeypatch.setattr(retention, "verify", spy)
    Run(tmp_path, 3).save(*range(1, 11))
    assert verified == ["step-00000004", "step-00000007", "step-00000010"]
    assert steps(tmp_path) == [8, 9, 10]


@pytest.mark.parametrize("damage", ["marker", "manifest", "shorter", "renamed"])
def test_what_is_seen_to_be_damaged_does_not_count(tmp_path: Path, damage: str) -> None:
    run = Run(tmp_path, 9)
    run.save(1, 2)
    run.saver.close()
    folder = disk.step_folder(tmp_path, 2)
    if damage == "renamed":
        shutil.copytree(folder, disk.step_folder(tmp_path, 3))
        shutil.rmtree(folder)
    elif damage == "shorter":
        (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])
    else:
        (folder / {"marker": disk.MARKER, "manifest": disk.MANIFEST}[damage]).write_text("{}")
    run = Run(tmp_path, 2)
    run.save(4)
    assert steps(tmp_path) == [1, 4]
    run.save(5)
    assert steps(tmp_path) == [4, 5]


def test_incomplete_folders_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    run = Run(tmp_path, 2)
    run.save(1)
    disk.step_folder(tmp_path, 2).mkdir()
    run.save(3)
    assert steps(tmp_path) == [1, 3]
    run.save(4)
    assert steps(tmp_path) == [3, 4] and disk.step_folder(tmp_path, 2).exists()


@pytest.mark.parametrize("keep", [3, 400, 1000])
def test_a_save_reads_few_manifests_however_many_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    first = Run(tmp_path, 1000)
    first.save(1)
    first.saver.close()
    for step in range(2, 401):
        shutil.copytree(disk.step_folder(tmp_path, 1), disk.step_folder(tmp_path, step))
        text = (disk.step_folder(tmp_path, step) / disk.MANIFEST).read_bytes()
        text = text.replace(b'"step":1,', b'"step":%d,' % step)
        (disk.step_folder(tmp_path, step) / disk.MANIFEST).write_bytes(text)
        (disk.step_folder(tmp_path, step) / disk.MARKER).write_text(disk.marker_text(text))
    run = Run(tmp_path, keep)
    reads: list[Path] = []
    load = reader._vouched

    def spy(folder: Path) -> Any:
        reads.append(folder)
        return load(folder)

    monkeypatch.setattr(reader, "_vouched", spy)
    run.save(401)
    deleted = max(0, 401 - keep)
    assert len(reads) <= retention.LOOKS + deleted + 2
    reads.clear()
    run.save(402)
    assert len(reads) <= retention.LOOKS + 3
    monkeypatch.undo()
    assert len(steps(tmp_path)) == min(keep, 402)


class Refusing:
    """Lets `os.fsync` of a folder fail, once, with EIO."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, which: Callable[[Path], bool]) -> None:
        self.left = 1
        sync = disk.sync

        def refuse(path: Path) -> None:
            if self.left and which(path):
                self.left -= 1
                raise disk.FlushError(5, "Input/output error")
            sync(path)

        monkeypatch.setattr(disk, "sync", refuse)


def spied(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Path]:
    """The paths that a function of the folder's module is called with."""
    seen: list[Path] = []
    call = getattr(disk, name)

    def spy(path: Path, *rest: Any) -> None:
        seen.append(path)
        call(path, *rest)

    monkeypatch.setattr(disk, name, spy)
    return seen


@pytest.mark.parametrize("place", ["step-00000002", "."])
@pytest.mark.parametrize("retries", [0, 1])
def test_nothing_is_pruned_before_a_save_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, retries: int
) -> None:
    """The flush of a folder fails after its rename: the save is written anew, with all its bytes,
    and until then the older one stays."""
    run = Run(tmp_path, 1, retries=retries)
    run.save(1)
    old = (disk.step_folder(tmp_path, 1)).stat().st_ino
    after_marker = place != "."

    def which(path: Path) -> bool:
        marked = (disk.step_folder(tmp_path, 2) / disk.MARKER).exists()
        there = disk.step_folder(tmp_path, 2).exists()
        return path == tmp_path / place and (marked if after_marker else there)

    refusing = Refusing(monkeypatch, which)
    written = spied(monkeypatch, "write_synced")
    if retries:
        run.save(2)
        assert steps(tmp_path) == [2]
        assert len(written) == 4 and "trying again" in run.notes[1]
    else:
        with pytest.raises(CheckpointError, match="Input/output error: check the disk"):
            run.save(2)
        assert steps(tmp_path) == [1] and disk.step_folder(tmp_path, 1).stat().st_ino == old
        assert not list(tmp_path.glob(".tmp-*"))
        run.save(2)
        assert steps(tmp_path) == [2]
    assert refusing.left == 0 and not any("already saved" in note for note in run.notes)


@pytest.mark.parametrize("place", ["step-00000002", "."])
def test_what_is_already_saved_has_to_be_durable_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first = Run(tmp_path, 2)
    first.save(1, 2)
    first.saver.close()
    second = Run(tmp_path, 1)
    with monkeypatch.context() as patch:
        Refusing(patch, lambda path: path == tmp_path / place)
        with pytest.raises(CheckpointError, match="Input/output error"):
            second.save(2)
    assert steps(tmp_path) == [1]
    (aside,) = tmp_path.glob("step-00000002.broken-*")
    assert verify(aside).step == 2
    second.save(2)
    assert steps(tmp_path) == [2] and not any("already saved" in note for note in second.notes)
    flushed = spied(monkeypatch, "sync")
    second.save(2)
    assert flushed == [tmp_path / "step-00000002", tmp_path] and "already saved" in second.notes[-2]


def overtaken(monkeypatch: pytest.MonkeyPatch, path: Path, at: int, after: bool) -> list[int]:
    """Another process takes the lease before, or after, the check number `at`; counts checks."""
    calls, check = [0], Lease.check

    def spy(lease: Lease) -> None:
        calls[0] += 1
        here = calls[0] == at
        if here and not after:
            take(path, "saves", "checkpoint.path")
        check(lease)
        if here and after:
            take(path, "saves", "checkpoint.path")

    monkeypatch.setattr(Lease, "check", spy)
    return calls


CHECKS = 5
"""Before placing, renaming, marking, and deleting; and after hiding what is deleted."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, CHECKS + 1))
def test_overtaken_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, after: bool
) -> None:
    """What is not caught by a check is harmless: no older save goes without a whole newer one."""
    run = Run(tmp_path, 1)
    run.save(1)
    calls = overtaken(monkeypatch, tmp_path, at, after)
    last = at == CHECKS and after
    if last:
        run.save(2)
    else:
        with pytest.raises(LeaseLostError, match="no longer this run's: process"):
            run.save(2)
    done = at + after
    assert calls[0] == min(done, CHECKS)
    assert steps(tmp_path) == ([2] if last else [1, 2] if done > 3 else [1])
    assert not list(tmp_path.glob(".tmp-*"))
    monkeypatch.undo()
    newer = Run(tmp_path, 1)
    newer.save(2, 3)
    assert steps(tmp_path) == [3]


def test_stale_folders_of_newer_sessions_stay(tmp_path: Path) -> None:
    names = [".tmp-step-00000001-g00000001-01234567", ".tmp-step-00000001-g00000009-01234567"]
    names += [".tmp-pruned-00000001-0123456789abcdef", ".tmp-step-00000001-g00000005-76543210"]
    for name in names:
        (tmp_path / name).mkdir()
    disk.remove_stale(tmp_path, "g00000005-01234567")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [names[3], names[1]]
