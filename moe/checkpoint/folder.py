"""A checkpoint's folder on disk: names, durable writes, and rank 0's commit and pruning."""

import hashlib
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from ... import UserError

MANIFEST = "manifest.json"
MARKER = "COMMITTED"

_STEP = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"\.tmp-(?:step|pruned)-\d{8,}-([0-9a-f]{16})")


def step_folder(path: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies under `path`."""
    return path / f"step-{step:08d}"


def temporary_folder(path: Path, step: int, nonce: str) -> Path:
    """Where the checkpoint of `step` is written before its commit."""
    return path / f".tmp-step-{step:08d}-{nonce}"


def shard_name(rank: int) -> str:
    """File name of a rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def step_of(folder: Path) -> int | None:
    """The step that the folder's name says, or None for another name."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def step_folders(path: Path) -> list[Path]:
    """All `step-*` entries under `path`, complete or not, ascending by step.

    Empty if `path` does not exist; UserError if it cannot be listed.
    """
    try:
        entries = list(path.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"checkpoint.path {path}: {error.strerror}: give a folder") from None
    found = [(step, entry) for entry in entries if (step := step_of(entry)) is not None]
    return [entry for _, entry in sorted(found)]


def regular_size(file: Path) -> int:
    """Size in bytes; OSError if it is missing, ValueError if it is a link, folder or device."""
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("a symlink or not a plain file")
    return status.st_size


def marker_text(manifest: bytes) -> str:
    """What the COMMITTED marker holds for this manifest."""
    return f"manifest sha256 {hashlib.sha256(manifest).hexdigest()}\n"


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(file: Path, data: bytes) -> None:
    """Write and flush a whole file."""
    file.write_bytes(data)
    sync(file)


def publish(temporary: Path, final: Path, manifest: bytes) -> None:
    """Turn a fully written temporary folder into the complete checkpoint `final`.

    The marker is written (not yet under its name) before the folder moves, so that after the
    move only a rename is left, which needs no disk space.
    """
    pending = f"{MARKER}.pending"
    write_synced(temporary / MANIFEST, manifest)
    write_synced(temporary / pending, marker_text(manifest).encode())
    sync(temporary)
    temporary.rename(final)
    sync(final.parent)
    (final / pending).rename(final / MARKER)
    sync(final)


def move_aside(folder: Path) -> Path:
    """Rename an incomplete or damaged checkpoint out of the way; nothing is lost."""
    aside = folder.with_name(f"{folder.name}.broken-{secrets.token_hex(4)}")
    folder.rename(aside)
    return aside


def delete(folder: Path, nonce: str) -> None:
    """Delete a checkpoint. The rename hides it at once, so no reader finds it half deleted."""
    hidden = folder.with_name(f".tmp-pruned-{step_of(folder) or 0:08d}-{nonce}")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def remove_stale(path: Path, nonce: str) -> None:
    """Delete the temporary folders that dead sessions (with another nonce) left."""
    for entry in path.iterdir():
        match = _TEMPORARY.fullmatch(entry.name)
        if match and match[1] != nonce and not entry.is_symlink():
            shutil.rmtree(entry)
