"""Readers beside a run that saves and prunes: every look finds a good checkpoint."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moelstrom.moe.checkpoint import folder as disk
from moelstrom.moe.checkpoint import reader
from moelstrom.moe.checkpoint.reader import choose, complete, latest
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

Look = Callable[[Path], Path | None]


def unfinished(text: str) -> None:
    """The only thing that may be said of a save: that it goes on just now."""
    assert "the save never finished" in text


LOOKS: dict[str, Look] = {
    "latest": latest,
    "choose": lambda path: choose(path, unfinished),
    "complete": lambda path: next(reversed(complete(path)), None),
}


class Run:
    """Saves the next step at each call."""

    def __init__(self, path: Path, keep: int = 1) -> None:
        config = CheckpointConfig(path=str(path), keep=keep, asynchronous=False)
        self.saver, self.step = Saver(config, 0, 1), 0

    def save(self, *ignored: Any) -> None:
        self.step += 1
        data = torch.full((10,), float(self.step))
        self.saver.save(self.step, [Shard("w", (10,), 0, data)], {})


def before_once(patch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[..., None]) -> None:
    """Let `act` run before the first call."""
    call, left = getattr(owner, name), [act]

    def spy(*args: Any, **options: Any) -> Any:
        if left:
            left.pop()()
        return call(*args, **options)

    patch.setattr(owner, name, spy)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("place", ["_load_manifest", "_check_size", "DTYPES"])
def test_a_checkpoint_that_goes_away_during_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Look, place: str
) -> None:
    run = Run(tmp_path)
    run.save()
    if place == "DTYPES":
        # After its open, before its data is read.
        place = "_read" if look is not LOOKS["choose"] else "ShardFile"
    before_once(monkeypatch, reader, place, run.save)
    assert look(tmp_path) == disk.step_folder(tmp_path, 2)


def test_of_two_that_are_kept_two_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, keep=2)
    run.save()
    run.save()
    before_once(monkeypatch, reader, "_load_manifest", run.save)
    assert [folder.name for folder in complete(tmp_path)] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_listing_that_lacks_what_was_renamed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Look
) -> None:
    run = Run(tmp_path)
    run.save()
    lists, left = disk.step_folders, [True]

    def torn(path: Path) -> list[Path]:
        if left:
            left.pop()
            run.save()
            return []
        return lists(path)

    monkeypatch.setattr(disk, "step_folders", torn)
    assert look(tmp_path) == disk.step_folder(tmp_path, 2)


def test_damage_and_links_end_a_look(tmp_path: Path) -> None:
    (tmp_path / "step-00000003").symlink_to(tmp_path / "nowhere")
    (tmp_path / "step-00000002").mkdir()
    assert latest(tmp_path) is None and complete(tmp_path) == []
    assert choose(tmp_path, lambda text: None) is None


def test_many_looks_beside_many_saves(tmp_path: Path) -> None:
    run, over = Run(tmp_path), threading.Event()
    run.save()
    found: list[list[Path | None]] = []

    def watch(look: Look) -> None:
        mine: list[Path | None] = []
        while not over.is_set():
            mine.append(look(tmp_path))
        found.append(mine)

    threads = [threading.Thread(target=watch, args=(look,)) for look in LOOKS.values()]
    for thread in threads:
        thread.start()
    for _ in range(40):
        run.save()
    over.set()
    for thread in threads:
        thread.join()
    assert len(found) == len(LOOKS)
    for mine in found:
        names = [folder.name if folder else "" for folder in mine]
        assert "" not in names and names == sorted(names)
