"""Disks that refuse: full, then with room again, and read-only."""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moelstrom.moe.checkpoint.commit import CheckpointError
from moelstrom.moe.checkpoint.reader import choose, complete, verify
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

Ranks = Callable[..., list[Any]]
PAGE = os.sysconf("SC_PAGE_SIZE")


def make(path: Path, log: Any = None, **options: Any) -> Saver:
    config = CheckpointConfig(path=str(path), **{"retries": 0, "retry_wait_s": 0.1, **options})
    return Saver(config, rank=0, world_size=1, log=log)


def shards(value: float, numel: int = 1000) -> list[Shard]:
    return [Shard("w", (numel,), 0, torch.full((numel,), float(value)))]


def steps(path: Path) -> list[int]:
    return [verify(folder).step for folder in complete(path)]


@pytest.mark.parametrize("world", [1, 2])
def test_goes_on_after_room_came_back(run_ranks: Ranks, small_disk: Path, world: int) -> None:
    outcomes = run_ranks("room_returns", small_disk, world, retries=3, keeper=True)
    assert [outcome[:2] for outcome in outcomes] == [["", ""]] * world
    assert len(outcomes[0][2]) == 1 and all(outcome[2] == [] for outcome in outcomes[1:])
    assert "No space left on device: free some space there" in outcomes[0][2][0]
    assert "trying again in 0.2 s (1 of 3)" in outcomes[0][2][0]
    assert steps(small_disk) == [1, 2]
    texts = [(folder / "manifest.json").read_bytes() for folder in complete(small_disk)]
    sums = [hashlib.sha256(text).hexdigest() for text in texts]
    for rank, outcome in enumerate(outcomes):
        kept = outcome[3]
        assert kept[:2] == [f"keep 1 rank-{rank:05d}.safetensors True", f"commit 1 {sums[0]}"]
        assert kept[-2:] == [f"keep 2 rank-{rank:05d}.safetensors True", f"commit 2 {sums[1]}"]


def test_training_goes_on_between_the_tries(small_disk: Path) -> None:
    events: list[dict[str, Any]] = []
    saver = make(small_disk, events.append, retries=1, retry_wait_s=1)
    started = time.perf_counter()
    saver.save(1, shards(1, 1_200_000), {})
    assert time.perf_counter() - started < 1
    with pytest.raises(CheckpointError, match="free some space there; earlier ones are intact"):
        saver.wait()
    assert time.perf_counter() - started > 1 and len(events) == 1
    saver.save(2, shards(2), {})
    saver.close()
    assert steps(small_disk) == [2] and not list(small_disk.glob(".tmp-*"))


@pytest.mark.parametrize("pages", range(5))
def test_full_at_any_file(small_disk: Path, pages: int) -> None:
    """Room for only some of the pages of the tensors, the manifest and the marker."""
    saver = make(small_disk)
    saver.save(1, shards(1), {})
    saver.wait()
    files = (small_disk / "step-00000001").iterdir()
    needed = sum(-(-file.stat().st_size // PAGE) for file in files)
    assert needed == 3
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * PAGE
    filler.write_bytes(b"x" * (free - pages * PAGE))
    saver.save(2, shards(2), {})
    if pages < needed:
        with pytest.raises(CheckpointError, match="No space left on device"):
            saver.wait()
        assert steps(small_disk) == [1] and not list(small_disk.glob(".tmp-*"))
    else:
        saver.wait()
        assert steps(small_disk) == [1, 2]
    assert filler.stat().st_size == free - pages * PAGE
    filler.unlink()
    saver.save(3, shards(3), {})
    saver.close()
    assert steps(small_disk)[-1] == 3


def test_read_only_disk(small_disk: Path) -> None:
    saver = make(small_disk, retries=1)
    saver.save(1, shards(1), {})
    saver.wait()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        saver.save(2, shards(2), {})
        words = r"checkpoint\.path .*Read-only file system.*: mount it writable, or set another"
        with pytest.raises(CheckpointError, match=words):
            saver.wait()
        assert choose(small_disk, lambda text: None) == small_disk / "step-00000001"
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    saver.save(3, shards(3), {})
    saver.close()
    assert steps(small_disk) == [1, 3]


class Broken:
    """A keeper that has no room."""

    def keep(self, step: int, file: Path) -> None:
        raise MemoryError("no room")

    def commit(self, step: int, manifest: bytes) -> None:
        raise MemoryError("no room")


def test_a_keeper_that_fails_costs_no_save(tmp_path: Path) -> None:
    notes: list[str] = []
    config = CheckpointConfig(path=str(tmp_path))
    saver = Saver(config, 0, 1, lambda event: notes.append(event.get("message", "")), Broken())
    saver.save(1, shards(1), {})
    saver.close()
    assert steps(tmp_path) == [1]
    assert notes == ["not kept in memory: MemoryError: no room"] * 2 + [""]


class Counting:
    """A keeper that remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def keep(self, step: int, file: Path) -> None:
        self.calls.append(("keep", step))

    def commit(self, step: int, manifest: bytes) -> None:
        self.calls.append(("commit", step))


def test_a_step_that_is_there_is_not_committed_to_the_keeper(tmp_path: Path) -> None:
    keeper = Counting()
    saver = Saver(CheckpointConfig(path=str(tmp_path)), 0, 1, None, keeper)
    for _ in range(2):
        saver.save(1, shards(1), {})
        saver.wait()
    saver.close()
    assert keeper.calls == [("keep", 1), ("commit", 1), ("keep", 1)]
