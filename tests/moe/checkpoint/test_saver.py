"""One rank's saves: behind the training, never replacing what is good, keeping the newest."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from moelstrom.moe.checkpoint.commit import CheckpointError, merge
from moelstrom.moe.checkpoint.reader import Reader, complete, latest, verify
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard


def make(path: Path, log: Any = None, **options: Any) -> Saver:
    return Saver(CheckpointConfig(path=str(path), **options), rank=0, world_size=1, log=log)


def shards(value: float, numel: int = 1000) -> list[Shard]:
    return [Shard("w", (numel,), 0, torch.full((numel,), float(value)))]


def steps(path: Path) -> list[int]:
    return [verify(folder).step for folder in complete(path)]


def entries(path: Path) -> list[str]:
    """What lies there, but for the lease."""
    return sorted(entry.name for entry in path.iterdir() if entry.name != ".lease")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_events_and_meta(tmp_path: Path, asynchronous: bool) -> None:
    events: list[dict[str, Any]] = []
    saver = make(tmp_path, events.append, asynchronous=asynchronous)
    stall = saver.save(7, shards(1), {"tokens": 12, "config": {"name": "é"}})
    saver.close()
    (event,) = events
    assert event["kind"] == "checkpoint" and event["step"] == 7
    assert event["bytes"] > 4000 and event["write_s"] > 0 and 0 < event["stall_ms"] <= stall
    assert Reader(tmp_path / "step-00000007").meta == {"tokens": 12, "config": {"name": "é"}}


def test_asynchronous_returns_before_the_write(tmp_path: Path) -> None:
    """An unusable folder in the way makes a note before the commit, which holds the write back."""
    (tmp_path / "step-00000001").mkdir()
    gate = threading.Event()
    saver = make(tmp_path, lambda event: gate.wait(60))
    data = torch.ones(1000)
    saver.save(1, [Shard("w", (1000,), 0, data)], {})
    data.zero_()
    assert latest(tmp_path) is None
    gate.set()
    saver.close()
    assert (Reader(tmp_path / "step-00000001").read("w") == 1).all()


def test_changes_after_save_are_not_written(tmp_path: Path) -> None:
    saver = make(tmp_path, keep=5)
    data, meta = torch.empty(2_000_000), {"step": 0}
    for step in range(1, 5):
        data.fill_(step)
        meta["step"] = step
        saver.save(step, [Shard("w", (data.numel(),), 0, data)], meta)
        data.fill_(-1)
        meta["step"] = -1
    saver.close()
    for folder in complete(tmp_path):
        reader = verify(folder)
        assert (reader.read("w") == reader.step).all() and reader.meta["step"] == reader.step


def test_synchronous_is_there_on_return(tmp_path: Path) -> None:
    saver = make(tmp_path, asynchronous=False)
    saver.save(1, shards(1), {})
    assert steps(tmp_path) == [1]


def test_keeps_the_newest(tmp_path: Path) -> None:
    saver = make(tmp_path, keep=2)
    for step in (5, 10, 15, 20):
        saver.save(step, shards(step), {})
    saver.close()
    assert entries(tmp_path) == ["step-00000015", "step-00000020"]


def test_new_save_is_not_pruned_by_later_steps_of_another_run(tmp_path: Path) -> None:
    for step in (300, 100):
        saver = make(tmp_path, keep=1)
        saver.save(step, shards(step), {})
        saver.close()
    assert steps(tmp_path) == [100, 300]


def test_saved_step_is_kept(tmp_path: Path) -> None:
    notes: list[str] = []
    for value in (1, 2):
        saver = make(tmp_path, lambda event: notes.append(event.get("message", "")))
        saver.save(4, shards(value), {})
        saver.close()
    assert (Reader(tmp_path / "step-00000004").read("w") == 1).all()
    assert any("already saved" in note for note in notes)
    assert entries(tmp_path) == ["step-00000004"]


@pytest.mark.parametrize("damage", ["COMMITTED", "rank-00000.safetensors"])
def test_unusable_step_is_moved_aside(tmp_path: Path, damage: str) -> None:
    folder, notes = tmp_path / "step-00000004", []
    make(tmp_path, asynchronous=False).save(4, shards(1), {})
    content = (folder / damage).read_bytes()
    (folder / damage).write_bytes(content[:-1] + b"!")
    saver = make(tmp_path, lambda event: notes.append(event.get("message", "")))
    saver.save(4, shards(2), {})
    saver.close()
    assert (verify(folder).read("w") == 2).all()
    (aside,) = tmp_path.glob("step-00000004.broken-*")
    assert (aside / damage).read_bytes() == content[:-1] + b"!"
    assert str(aside) in notes[0] and latest(tmp_path) == folder


def test_removes_temporary_folders_of_dead_sessions_only(tmp_path: Path) -> None:
    dead = tmp_path / ".tmp-step-00000009-0123456789abcdef"
    other = tmp_path / ".tmp-mine"
    for folder in (dead, other):
        folder.mkdir()
        (folder / "file").touch()
    make(tmp_path, asynchronous=False).save(1, shards(1), {})
    assert other.exists() and not dead.exists()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Shard("v", (3,), 0, torch.ones(2)), "are missing"),
        (Shard("v", (3,), 2, torch.ones(2)), "of 3 elements"),
        (Shard("w", (1000,), 0, torch.ones(1000)), "given twice"),
        (Shard("w", (1000,), 999, torch.ones(1)), "held twice"),
        (Shard("w", (10, 100), 0, torch.ones(0)), "differ in dtype or shape"),
        (Shard("v", (4,), 0, torch.ones(4, dtype=torch.complex64)), "cannot be saved"),
    ],
)
def test_bad_shards(tmp_path: Path, bad: Shard, words: str) -> None:
    saver = make(tmp_path)
    saver.save(1, [*shards(1), bad], {})
    with pytest.raises(CheckpointError, match=words):
        saver.wait()
    saver.wait()
    saver.save(2, shards(2), {})
    saver.close()
    assert entries(tmp_path) == ["step-00000002"]


def test_failure_surfaces_at_the_next_save(tmp_path: Path) -> None:
    saver = make(tmp_path / "file")
    shutil.rmtree(tmp_path / "file")
    (tmp_path / "file").touch()
    saver.save(1, shards(1), {})
    with pytest.raises(CheckpointError, match=r"step 1 was not saved in checkpoint\.path .*file"):
        saver.save(2, shards(2), {})
    saver.close()


def test_failing_log_is_raised(tmp_path: Path) -> None:
    def log(event: dict[str, Any]) -> None:
        raise OSError("log is gone")

    saver = make(tmp_path, log)
    saver.save(1, shards(1), {})
    with pytest.raises(OSError, match="log is gone"):
        saver.close()
    assert steps(tmp_path) == [1]


def test_ranks_must_agree() -> None:
    def report(step: int, file: str, shape: list[int]) -> dict[str, Any]:
        entry = {"dtype": "float32", "shape": shape, "pieces": []}
        return {"step": step, "file": file, "size": 9, "tensors": {"w": entry}}

    first = report(1, "rank-00000.safetensors", [0])
    assert json.loads(merge(1, {}, [first]).model_dump_json())["step"] == 1
    with pytest.raises(CheckpointError, match="rank 1 saves step 2"):
        merge(1, {}, [first, report(2, "rank-00001.safetensors", [0])])
    with pytest.raises(CheckpointError, match="'w' has shape"):
        merge(1, {}, [first, report(1, "rank-00001.safetensors", [0, 1])])
