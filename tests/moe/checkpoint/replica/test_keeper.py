"""Checkpoints in memory: ranks on nodes that are memory folders, which get lost and damaged."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_runs import Case, start, train
from ranks import run_ranks

from moelstrom import UserError
from moelstrom.moe.checkpoint.folder import MANIFEST, MARKER, shard_name, step_folder
from moelstrom.moe.checkpoint.reader import Reader, latest
from moelstrom.moe.checkpoint.replica import memory
from moelstrom.moe.checkpoint.replica.keeper import Keeper
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.engines.base import Engine

CASE = Case("native", 1, 1)


def place(root: Path, node: int) -> None:
    """Put this process on a node."""
    os.environ[memory.VARIABLE] = str(root / f"node-{node}")


def save(engine: Engine, path: Path, keeper: Keeper | None) -> None:
    """Save, in memory too."""
    rank, world = dist.get_rank(), dist.get_world_size()
    saver = Saver(CheckpointConfig(path=str(path)), rank, world, keeper=keeper)
    saver.save(engine.steps_done, engine.export_state(), {})
    saver.close()
    dist.barrier()


def base(root: Path) -> dict[str, Any]:
    """A run that saves steps 2 and 4 with replicas, and goes on to 7; its last curve."""
    rank = dist.get_rank()
    place(root / "base", rank)
    notes: list[str] = []
    keeper = Keeper(root / "run", rank, 2, notes.append)
    assert keeper.restore(None) is None
    engine = start(CASE)
    for first in (0, 2):
        train(engine, first, first + 2)
        save(engine, root / "run" / "checkpoints", keeper)
    own = sorted(file.name for file in only(root / "base", rank).iterdir())
    held = sorted(file.name for file in (only(root / "base", rank) / own[0]).iterdir())
    after = train(engine, 4, 7)
    if rank == 0:
        shutil.copytree(root / "run" / "checkpoints", root / "saved")
        shutil.copy(root / "run" / memory.IDENTITY, root)
    keeper.close()
    return {"notes": notes, "steps": own, "files": held, "curve": after}


def only(root: Path, node: int) -> Path:
    """The one run's memory on a node."""
    (found,) = (root / f"node-{node}").iterdir()
    return found


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)


def lose_node_and_disk(at: Callable[[int], Path], disk: Path) -> None:
    shutil.rmtree(at(1).parents[1])
    disk.rename(disk.with_name("elsewhere"))


def nothing(at: Callable[[int], Path], disk: Path) -> None:
    pass


def damage_a_copy_and_the_disk(at: Callable[[int], Path], disk: Path) -> None:
    flip(at(0) / shard_name(0))
    disk.rename(disk.with_name("elsewhere"))


def damage_all_copies(at: Callable[[int], Path], disk: Path) -> None:
    for node in (0, 1):
        flip(at(node) / shard_name(0))


def cut_every_second_file(at: Callable[[int], Path], disk: Path) -> None:
    for node in (0, 1):
        os.truncate(at(node) / shard_name(node), 99)


def edit_a_manifest(at: Callable[[int], Path], disk: Path) -> None:
    (at(1) / MANIFEST).write_bytes((at(1) / MANIFEST).read_bytes() + b" ")
    os.truncate(at(0) / shard_name(1), 99)


def lose_markers(at: Callable[[int], Path], disk: Path) -> None:
    for node in (0, 1):
        (at(node) / MARKER).unlink()


def newer_disk(at: Callable[[int], Path], disk: Path) -> None:
    shutil.copytree(step_folder(disk, 4), step_folder(disk, 5))
    spoof(step_folder(disk, 5), b'"step":4', b'"step":5')


def another_save(at: Callable[[int], Path], disk: Path) -> None:
    spoof(step_folder(disk, 4), b'"meta":{}', b'"meta":{"a":1}')


def spoof(folder: Path, old: bytes, new: bytes) -> None:
    from moelstrom.moe.checkpoint.folder import marker_text

    text = (folder / MANIFEST).read_bytes()
    assert old in text
    (folder / MANIFEST).write_bytes(text.replace(old, new))
    (folder / MARKER).write_text(marker_text(text.replace(old, new)))


def new_run(at: Callable[[int], Path], disk: Path) -> None:
    (disk.parent / memory.IDENTITY).unlink()
    shutil.rmtree(disk)


SCENARIOS: dict[Callable, tuple[bool, str]] = {
    nothing: (True, ""),
    lose_node_and_disk: (True, ""),
    damage_a_copy_and_the_disk: (True, "rank-00000.safetensors: SHA-256 of"),
    damage_all_copies: (False, "rank-00000.safetensors: SHA-256 of"),
    cut_every_second_file: (True, "missing, or not of the size that was saved"),
    edit_a_manifest: (False, ""),
    lose_markers: (False, ""),
    newer_disk: (False, ""),
    another_save: (False, ""),
    new_run: (False, ""),
}
"""Whether memory serves after it, and what rank 0 notes."""


def resume(root: Path, name: str) -> dict[str, Any]:
    """Spoil copies of memory and disk, and resume; collective."""
    rank, spoil = dist.get_rank(), globals()[name]
    here, disk = root / name, root / "run" / "checkpoints"
    if rank == 0:
        shutil.copytree(root / "base", here)
        for old in (disk, disk.with_name("elsewhere")):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(root / "saved", disk)
        shutil.copy(root / memory.IDENTITY, root / "run")
        spoil(lambda node: step_folder(only(here, node), 4), disk)
    dist.barrier()
    place(here, rank)
    notes: list[str] = []
    keeper = Keeper(root / "run", rank, dist.get_world_size(), notes.append)
    newest = latest(disk) if rank == 0 else None
    assert keeper.restore(newest, below=4) is None
    folder = keeper.restore(newest)
    curve = None
    if folder is not None:
        assert folder.is_relative_to(here / f"node-{rank}")
        engine = start(CASE)
        engine.import_state(Reader(folder))
        curve = train(engine, 4, 7)
    keeper.close(ended=True)
    left = list((here / f"node-{rank}").iterdir())
    return {"used": folder is not None, "notes": notes, "curve": curve, "left": left}


def resume_all(root: Path) -> dict[str, dict[str, Any]]:
    return {scenario.__name__: resume(root, scenario.__name__) for scenario in SCENARIOS}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def straight(root: Path) -> list[dict[str, Any]]:
    return run_ranks(2, base, root)


def test_a_save_lies_in_both_memories(straight: list[dict[str, Any]]) -> None:
    for rank in straight:
        assert rank["steps"] == ["step-00000004"] and not rank["notes"]
        assert rank["files"] == [MARKER, MANIFEST, shard_name(0), shard_name(1)]


def test_memory_serves_bitwise_or_not_at_all(root: Path, straight: list[dict[str, Any]]) -> None:
    for rank, outcomes in enumerate(run_ranks(2, resume_all, root)):
        for scenario, (used, noted) in SCENARIOS.items():
            outcome = outcomes[scenario.__name__]
            assert outcome["used"] == used, scenario.__name__
            if used:
                assert torch.equal(outcome["curve"], straight[rank]["curve"]), scenario.__name__
            notes = "\n".join(outcome["notes"]) if rank == 0 else noted
            assert noted in notes if noted else not notes, (scenario.__name__, notes)
            assert outcome["left"] == []


def alone(root: Path) -> tuple[torch.Tensor, list[str]]:
    """One rank goes on where two were."""
    outcome = resume(root, "lose_node_and_disk")
    return outcome["curve"], outcome["notes"]


def test_fewer_ranks_go_on_from_memory(root: Path, straight: list[dict[str, Any]]) -> None:
    shutil.rmtree(root / "lose_node_and_disk", ignore_errors=True)
    ((curve, notes),) = run_ranks(1, alone, root)
    assert not notes
    torch.testing.assert_close(curve, straight[0]["curve"], rtol=0, atol=1e-5)


def full(root: Path) -> dict[str, Any]:
    """Rank 1's memory is full at the second save, and has room again at the third; both ranks
    share a node at first."""
    rank = dist.get_rank()
    os.environ[memory.VARIABLE] = str(root / "shared")
    notes: list[str] = []
    keeper = Keeper(root / "full", rank, 2, notes.append)
    engine = start(CASE)
    path = root / "full" / "checkpoints"
    served = []
    for step in (1, 2, 3):
        train(engine, step - 1, step)
        with pytest.MonkeyPatch.context() as patch:
            if step == 2 and rank == 1:
                patch.setattr(shutil, "copyfile", refuse)
            save(engine, path, keeper)
        found = keeper.restore(latest(path) if rank == 0 else None)
        served.append(found.name if found else None)
    return {"served": served, "notes": notes}


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_memory_costs_one_replica_and_a_note(tmp_path: Path) -> None:
    ranks = run_ranks(2, full, tmp_path)
    for rank in ranks:
        assert rank["served"] == ["step-00000001", None, "step-00000003"]
    assert ranks[0]["notes"] == ["checkpoint memory: rank 1's memory did not hold its file"]


def lost(root: Path) -> list[str]:
    """Rank 1 is gone when rank 0 wants to send."""
    rank = dist.get_rank()
    place(root, rank)
    notes: list[str] = []
    keeper = Keeper(root / "run", rank, 2, notes.append)
    engine = start(CASE)
    train(engine, 0, 1)
    save(engine, root / "run" / "checkpoints", None)
    if rank == 0:
        file = step_folder(root / "run" / "checkpoints", 1)
        keeper.keep(1, file / shard_name(0))
        keeper.commit(1, (file / MANIFEST).read_bytes())
        keeper.commit(2, b"")
        keeper.close()
    return notes


def test_a_lost_rank_ends_replicas_not_the_process(tmp_path: Path) -> None:
    (notes, _) = run_ranks(2, lost, tmp_path)
    assert len(notes) == 1 and notes[0].startswith("checkpoints are no longer kept in memory: ")


def test_a_memory_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(memory.VARIABLE, str(tmp_path / "memory"))
    mine = memory.prepare(tmp_path / "run", "0" * 16)
    assert mine.stat().st_mode & 0o777 == 0o700
    mine.chmod(0o755)
    with pytest.raises(UserError, match="not a folder that is this user's alone"):
        memory.prepare(tmp_path / "run", "0" * 16)
    other = memory.prepare(tmp_path / "run", "1" * 16)
    assert list((tmp_path / "memory").iterdir()) == [other]
    other.rmdir()
    other.symlink_to(tmp_path)
    with pytest.raises(UserError, match="not a folder that is this user's alone"):
        memory.prepare(tmp_path / "run", "1" * 16)
    (tmp_path / "file").touch()
    monkeypatch.setenv(memory.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"MOELSTROM_MEMORY .*replicas: false"):
        memory.prepare(tmp_path / "run", "1" * 16)


def test_an_identity_stays_with_its_run(tmp_path: Path) -> None:
    name = memory.identity(tmp_path / "run")
    assert memory.identity(tmp_path / "run") == name != memory.identity(tmp_path / "other")
    (tmp_path / "run" / memory.IDENTITY).write_text("../x")
    with pytest.raises(UserError, match=r"replicas\.id: holds no identity"):
        memory.identity(tmp_path / "run")
