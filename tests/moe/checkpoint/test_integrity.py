"""Every damage of a real checkpoint of two ranks: refused by name, the one before it used, nothing
deleted."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moelstrom import UserError
from moelstrom.moe.checkpoint.folder import MANIFEST, MARKER, marker_text, shard_name
from moelstrom.moe.checkpoint.reader import Reader, choose, verify

NUMEL = 300_000
SHARD = shard_name(1)
Ranks = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def saved(run_ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2, and step 2 of another session beside them."""
    path = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        assert run_ranks("one", path / "run", 2, step=step) == ["", ""]
    assert run_ranks("one", path / "other", 2, step=2, scale=3.0) == ["", ""]
    return path


# Each damages step 2; returns the file that the refusal names, and words of it.


def flipped_bit(folder: Path) -> tuple[str, str]:
    content = bytearray((folder / SHARD).read_bytes())
    content[-1000] ^= 1
    (folder / SHARD).write_bytes(content)
    return SHARD, "SHA-256 differs"


def truncated_shard(folder: Path) -> tuple[str, str]:
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 4096)
    return SHARD, "were saved"


def missing_shard(folder: Path) -> tuple[str, str]:
    (folder / SHARD).rename(folder.parent.parent / "lost")
    return SHARD, "No such file"


def shards_of_two_steps(folder: Path) -> tuple[str, str]:
    shutil.copy(folder.with_name("step-00000001") / SHARD, folder)
    return SHARD, "not the file that was saved"


def shards_of_two_sessions(folder: Path) -> tuple[str, str]:
    shutil.copy(folder.parent.parent / "other" / folder.name / SHARD, folder)
    return SHARD, "not the file that was saved"


def manifest_of_another_save(folder: Path) -> tuple[str, str]:
    shutil.copy(folder.parent.parent / "other" / folder.name / MANIFEST, folder)
    return MANIFEST, "comes from another save"


def edited_manifest(folder: Path) -> tuple[str, str]:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"meta":{"step":2}', '"meta":{"step":3}'))
    return MANIFEST, "it was edited"


def edited_and_sealed(folder: Path) -> tuple[str, str]:
    """Also the marker is made to fit: the pieces' hashes are what remains."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["tensors"]["model/w1"]["pieces"][1]["sha256"] = "0" * 64
    return seal(folder, manifest, SHARD), "SHA-256 differs"


def path_that_escapes(folder: Path) -> tuple[str, str]:
    manifest = json.loads((folder / MANIFEST).read_text())
    outside = f"../../other/{folder.name}/{SHARD}"
    manifest["files"][outside] = manifest["files"].pop(SHARD)
    for tensor in manifest["tensors"].values():
        tensor["pieces"][1]["file"] = outside
    return seal(folder, manifest, MANIFEST), "pattern"


def absolute_path(folder: Path) -> tuple[str, str]:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["/etc/passwd"] = 1
    return seal(folder, manifest, MANIFEST), "/etc/passwd"


def seal(folder: Path, manifest: Any, named: str) -> str:
    text = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(text)
    (folder / MARKER).write_text(marker_text(text))
    return named


class Bomb:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ["MOELSTROM_TEST_TRACE"]),)


def pickle_in_place(folder: Path) -> tuple[str, str]:
    size = (folder / SHARD).stat().st_size
    (folder / SHARD).write_bytes(pickle.dumps(Bomb()).ljust(size, b"."))
    return SHARD, "not the file that was saved"


def pickle_as_manifest(folder: Path) -> tuple[str, str]:
    text = pickle.dumps(Bomb())
    (folder / MANIFEST).write_bytes(text)
    (folder / MARKER).write_text(marker_text(text))
    return MANIFEST, "not a valid manifest"


def symlinked_shard(folder: Path) -> tuple[str, str]:
    target = folder.parent.parent / "elsewhere"
    shutil.move(folder / SHARD, target)
    (folder / SHARD).symlink_to(target)
    return SHARD, "symlink"


def symlinked_marker(folder: Path) -> tuple[str, str]:
    target = folder.parent.parent / "marker"
    shutil.move(folder / MARKER, target)
    (folder / MARKER).symlink_to(target)
    return MARKER, "symlink"


def pipe_as_shard(folder: Path) -> tuple[str, str]:
    """Opening it would wait for ever."""
    (folder / SHARD).unlink()
    os.mkfifo(folder / SHARD)
    return SHARD, "not a plain file"


def save_that_never_finished(folder: Path) -> tuple[str, str]:
    (folder / MARKER).rename(folder / f"{MARKER}.pending")
    return MARKER, "the save never finished"


def stale_temporary_folder(folder: Path) -> tuple[str, str]:
    """A dead session's temporary folder was given a checkpoint's name by hand."""
    (folder / MARKER).unlink()
    (folder / MANIFEST).unlink()
    return MARKER, "the save never finished"


def folder_of_another_step(folder: Path) -> tuple[str, str]:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)
    return folder.name, "holds step 1"


DAMAGES = [
    flipped_bit,
    truncated_shard,
    missing_shard,
    shards_of_two_steps,
    shards_of_two_sessions,
    manifest_of_another_save,
    edited_manifest,
    edited_and_sealed,
    path_that_escapes,
    absolute_path,
    pickle_in_place,
    pickle_as_manifest,
    symlinked_shard,
    symlinked_marker,
    pipe_as_shard,
    save_that_never_finished,
    stale_temporary_folder,
    folder_of_another_step,
]


def listing(path: Path) -> dict[str, tuple[int, str]]:
    """Every entry below `path`: its kind and its bytes' hash."""
    found = {}
    for entry in sorted(path.rglob("*")):
        plain = entry.is_file() and not entry.is_symlink()
        sha = hashlib.sha256(entry.read_bytes()).hexdigest() if plain else ""
        found[str(entry.relative_to(path))] = (entry.lstat().st_mode, sha)
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], tuple[str, str]],
) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    trace = tmp_path / "trace"
    monkeypatch.setenv("MOELSTROM_TEST_TRACE", str(trace))
    run = tmp_path / "copy/run"
    folder = run / "step-00000002"
    named, words = damage(folder)
    before = listing(tmp_path)

    reports: list[str] = []
    assert choose(run, reports.append) == run / "step-00000001"
    (message,) = reports
    assert named in message and words in message and "\n" not in message
    assert str(folder) in message

    if damage is not folder_of_another_step:
        with pytest.raises(UserError) as caught:
            verify(folder)
        assert str(caught.value) in message and "restore this file from a copy" in message
    assert listing(tmp_path) == before and not trace.exists()
    good = Reader(run / "step-00000001")
    assert all((good.read(name) == 1).all() for name in good.tensors)


def test_temporary_folder_is_no_checkpoint(saved: Path, tmp_path: Path) -> None:
    """A dead session's hidden folder, whole but for its commit, is passed over in silence."""
    shutil.copytree(saved / "run", tmp_path / "run")
    stale = tmp_path / "run/.tmp-step-00000009-0123456789abcdef"
    shutil.copytree(tmp_path / "run/step-00000002", stale)
    (stale / MARKER).rename(stale / f"{MARKER}.pending")
    reports: list[str] = []
    assert choose(tmp_path / "run", reports.append) == tmp_path / "run/step-00000002"
    assert reports == [] and len(list(stale.iterdir())) == 4
    with pytest.raises(UserError, match="the save never finished"):
        Reader(stale)


def test_undamaged_is_chosen(saved: Path) -> None:
    """What the tests above would see if nothing were refused."""
    assert choose(saved / "run", pytest.fail) == saved / "run/step-00000002"


def test_folder_that_cannot_be_entered(saved: Path, tmp_path: Path) -> None:
    """A link to itself: every read below it fails with the system's own error."""
    shutil.copytree(saved / "run", tmp_path / "run")
    folder = tmp_path / "run/step-00000002"
    for file in folder.iterdir():
        file.rename(tmp_path / file.name)
    folder.rmdir()
    folder.symlink_to(folder)
    reports: list[str] = []
    assert choose(tmp_path / "run", reports.append) == tmp_path / "run/step-00000001"
    assert os.strerror(errno.ELOOP) in reports[0]
