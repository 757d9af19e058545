"""The order in which a save reaches the disk, whole: each step is flushed before the next."""

import json
import re
from pathlib import Path

import pytest
import torch
from disk_calls import Recorded

from moelstrom import UserError
from moelstrom.moe.checkpoint import folder as disk
from moelstrom.moe.checkpoint.commit import CheckpointError, Commit
from moelstrom.moe.checkpoint.lease import take
from moelstrom.moe.checkpoint.reader import Reader, choose
from moelstrom.moe.checkpoint.retention import Retention
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.checkpoint.snapshot import HostBuffers, Snapshot
from moelstrom.moe.checkpoint.writer import write_shards
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

SHARD = "rank-00000.safetensors"
FIRST = "fsync run; fsync .;"
"""The folders that lead to the checkpoints, once."""
SAVE = """
    mkdir T;
    open T/rank-00000.safetensors; reserve T/rank-00000.safetensors;
    write T/rank-00000.safetensors; write T/rank-00000.safetensors; fsync T/rank-00000.safetensors;
    open T/manifest.json; write T/manifest.json; fsync T/manifest.json;
    open T/COMMITTED.pending; write T/COMMITTED.pending; fsync T/COMMITTED.pending;
    fsync T; rename T F; fsync C;
    rename F/COMMITTED.pending F/COMMITTED; fsync F;
"""
PRUNE = "rename O P; rmtree P;"


def shards(value: float) -> list[Shard]:
    return [Shard("w", (10,), 0, torch.full((10,), value))]


def expected(text: str, session: str, step: int) -> list[str]:
    base = "run/checkpoints"
    names = {
        "T": f"{base}/.tmp-step-{step:08d}-{session}",
        "F": f"{base}/step-{step:08d}",
        "O": f"{base}/step-{step - 1:08d}",
        "P": f"{base}/.tmp-pruned-{step - 1:08d}-{session}",
        "C": base,
    }
    calls = [" ".join(call.split()) for call in text.split(";")]
    return [re.sub(r"\b[TFOPC]\b", lambda m: names[m[0]], call) for call in calls if call]


def test_every_step_of_a_save_is_flushed_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "checkpoints"
    saver = Saver(CheckpointConfig(path=str(path), keep=1, asynchronous=False), 0, 1)
    session = saver._writer._session
    record = Recorded(tmp_path, monkeypatch)
    saver.save(1, shards(1), {})
    assert record.calls == expected(FIRST + SAVE, session, 1)
    record.calls.clear()
    saver.save(2, shards(2), {})
    assert record.calls == expected(SAVE + PRUNE, session, 2)
    record.calls.clear()
    saver.save(2, shards(2), {})
    untouched = SAVE[: SAVE.index("open T/manifest")] + "fsync F; fsync C; rmtree T;"
    assert record.calls == expected(untouched, session, 2)
    saver.close()


def reported(path: Path, session: str) -> tuple[Path, list[bytes]]:
    """A rank's file of step 1 and its report, not yet committed."""
    folder = disk.temporary_folder(path, 1, session)
    folder.mkdir(parents=True)
    snapshot = Snapshot(HostBuffers())
    snapshot.add(shards(1))
    report = {"step": 1, **write_shards(folder / SHARD, snapshot)}
    return folder / SHARD, [json.dumps(report).encode()]


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "a link"])
def test_rank_0_has_to_see_what_the_others_wrote(tmp_path: Path, damage: str) -> None:
    lease = take(tmp_path, "saves", "checkpoint.path")
    file, reports = reported(tmp_path, lease.session)
    data = file.read_bytes()
    file.unlink()
    if damage == "a link":
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / "elsewhere")
    elif damage != "missing":
        file.write_bytes(data[:-1] if damage == "shorter" else data + b"\0")
    commit = Commit(tmp_path, 1, lease.session, "{}", lease, Retention(1), lambda text: None)
    with pytest.raises(CheckpointError, match=r"rank 0 does not see .*that all nodes share"):
        commit.run(reports)
    assert choose(tmp_path, lambda text: None) is None


@pytest.mark.parametrize("change", [b"", b"\0"])
def test_a_file_of_another_length_is_refused(tmp_path: Path, change: bytes) -> None:
    saver = Saver(CheckpointConfig(path=str(tmp_path), asynchronous=False), 0, 1)
    saver.save(1, shards(1), {})
    file = disk.step_folder(tmp_path, 1) / SHARD
    data = file.read_bytes()
    file.write_bytes(data + change if change else data[:-1])
    with pytest.raises(UserError, match=rf"{len(data)} were saved"):
        Reader(file.parent)


def test_the_sessions_own_temporary_folders_stay(tmp_path: Path) -> None:
    """Another rank of the same session may have begun to write."""
    saver = Saver(CheckpointConfig(path=str(tmp_path), asynchronous=False), 0, 1)
    other = disk.temporary_folder(tmp_path, 7, saver._writer._session)
    (other / "deeper").mkdir(parents=True)
    saver.save(1, shards(1), {})
    assert (other / "deeper").exists()
