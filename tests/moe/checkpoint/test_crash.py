"""Killed, failing and lost ranks: the newest complete checkpoint always verifies."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moelstrom.moe.checkpoint.reader import choose, complete, latest, verify

NUMEL = 300_000
Ranks = Callable[..., list[Any]]


def check_newest(path: Path) -> int:
    """The newest complete checkpoint's step (0: none); all its data is of that one step."""
    newest = latest(path)
    assert newest == choose(path, lambda text: None)
    if newest is None:
        return 0
    reader = verify(newest)
    assert reader.meta == {"step": reader.step}
    for name, info in reader.tensors.items():
        assert (reader.read(name) == reader.step).all() and info.shape == (NUMEL,)
    return reader.step


@pytest.mark.parametrize(("world", "kills"), [(1, 10), (2, 6)])
def test_kill_at_random_moments(run_ranks: Ranks, tmp_path: Path, world: int, kills: int) -> None:
    moments = random.Random(world)
    path, acks = tmp_path / "checkpoints", tmp_path / "acks"
    acks.touch()
    for _ in range(kills):
        delay = moments.uniform(0.05, 0.6)
        gap = moments.uniform(0.0, 0.05)
        options = {"acks": str(acks), "kill_after": delay, "kill_gap": gap}
        assert run_ranks("endless", path, world, **options)[0] == "signal 9"
        acknowledged = max((int(line) for line in acks.read_text().split()), default=0)
        assert check_newest(path) >= acknowledged
    assert check_newest(path) > 0


def test_kill_at_every_filesystem_call(run_ranks: Ranks, tmp_path: Path) -> None:
    """Steps 1 and 2 are there; saving 3 also prunes 1. Every crash leaves 2 or 3 newest."""
    seen = set()
    for n in range(200):
        path = tmp_path / str(n)
        assert run_ranks("one", path, step=1) == run_ranks("one", path, step=2) == [""]
        (outcome,) = run_ranks("die_at", path, step=3, n=n)
        seen.add(check_newest(path))
        assert run_ranks("one", path, step=3) == [""]
        assert check_newest(path) == 3
        assert run_ranks("one", path, step=4) == [""]
        assert [folder.name for folder in complete(path)] == ["step-00000003", "step-00000004"]
        assert not list(path.glob(".tmp-*"))
        if outcome != "signal 9":
            break
    assert outcome == "" and n > 8 and seen == {2, 3}


def test_every_rank_learns_that_one_failed(run_ranks: Ranks, tmp_path: Path) -> None:
    first, second = run_ranks("one_fails", tmp_path, 2)
    assert first == second
    assert first[0] == first[2] == ""
    assert "step 2 was not saved" in first[1] and "rank 1: " in first[1]
    assert [verify(folder).step for folder in complete(tmp_path)] == [1, 3]
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("world", [1, 2])
def test_disk_full(run_ranks: Ranks, small_disk: Path, world: int) -> None:
    outcomes = run_ranks("disk_full", small_disk, world)
    for first, second, third in outcomes:
        assert first == third == "" and second == outcomes[0][1]
        assert "No space left on device" in second and str(small_disk) in second
    assert [verify(folder).step for folder in complete(small_disk)] == [1, 3]


def test_bad_shards_are_refused_everywhere(run_ranks: Ranks, tmp_path: Path) -> None:
    first, second = run_ranks("bad_shards", tmp_path, 2)
    assert first == second
    assert "JSON" in first[0] and "contiguous" in first[1] and "are missing" in first[2]
    assert first[3] == ""
    assert [folder.name for folder in complete(tmp_path)] == ["step-00000003"]


def test_lost_rank_hangs_nobody(run_ranks: Ranks, tmp_path: Path) -> None:
    start = time.monotonic()
    *survivors, dead = run_ranks("lost", tmp_path, 3)
    assert time.monotonic() - start < 30
    assert dead == "signal 9"
    for first, second, third in survivors:
        assert first == "" and "step 2 broke off" in second and "lost a rank" in third
    assert check_newest(tmp_path) == 1


def test_ranks_write_one_file_each(run_ranks: Ranks, tmp_path: Path) -> None:
    assert run_ranks("one", tmp_path, 2, asynchronous=False) == ["", ""]
    folder = tmp_path / "step-00000001"
    assert check_newest(tmp_path) == 1
    assert sorted(file.name for file in folder.iterdir()) == [
        "COMMITTED",
        "manifest.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]
