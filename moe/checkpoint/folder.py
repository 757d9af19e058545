"""A checkpoint's folder on disk: names, durable writes, and rank 0's commit and pruning."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from ... import UserError

MANIFEST = "manifest.json"
MARKER = "COMMITTED"

_STEP = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"\.tmp-(?:step|pruned)-\d{8,}-(g(\d{8,})-[0-9a-f]{8}|[0-9a-f]{16})")
"""The session that wrote it: the number of its lease, or (also of version 0.1.0) only random."""


class FlushError(OSError):
    """The disk did not take what was written. What the kernel then still holds counts as flushed:
    the bytes have to be written anew, not flushed again."""


def step_folder(path: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies under `path`."""
    return path / f"step-{step:08d}"


def temporary_folder(path: Path, step: int, session: str) -> Path:
    """Where the checkpoint of `step` is written before its commit."""
    return path / f".tmp-step-{step:08d}-{session}"


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


def flush(handle: int) -> None:
    """Flush an open file or folder to disk. Raises FlushError."""
    try:
        os.fsync(handle)
    except OSError as error:
        raise FlushError(error.errno, error.strerror) from None


def sync(path: Path) -> None:
    """Flush a folder to disk, or a file that another handle wrote."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flush(handle)
    finally:
        os.close(handle)


def write_synced(file: Path, data: bytes) -> None:
    """Write and flush a whole file."""
    # The handle that wrote is the one that hears of a failure.
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        flush(handle)
    finally:
        os.close(handle)


def sync_ancestors(path: Path) -> None:
    """Flush the folders that lead to `path`, as far as its file system reaches: a new one is lost
    with a name that is not on disk."""
    device = path.stat().st_dev
    for folder in path.resolve().parents:
        if folder.stat().st_dev != device or not os.access(folder, os.R_OK):
            return
        sync(folder)


def publish(
    temporary: Path, final: Path, manifest: bytes, check: Callable[[], None] = lambda: None
) -> None:
    """Turn a fully written temporary folder into the complete checkpoint `final`.

    The marker is written (not yet under its name) before the folder moves, so that after the
    move only a rename is left, which needs no disk space. `check` raises where this process may
    write no more. After a disk's refusal the folder is back under its temporary name.
    """
    pending = f"{MARKER}.pending"
    write_synced(temporary / MANIFEST, manifest)
    write_synced(temporary / pending, marker_text(manifest).encode())
    sync(temporary)
    check()
    temporary.rename(final)
    try:
        sync(final.parent)
        check()
        (final / pending).rename(final / MARKER)
        sync(final)
    except OSError:
        # A marker that perhaps is not on disk must not stand for a save; but under this name may
        # lie a newer holder's by now.
        check()
        with contextlib.suppress(OSError):
            final.rename(temporary)
        raise


def move_aside(folder: Path) -> Path:
    """Rename an incomplete or damaged checkpoint out of the way; nothing is lost."""
    aside = folder.with_name(f"{folder.name}.broken-{secrets.token_hex(4)}")
    folder.rename(aside)
    return aside


def delete(folder: Path, session: str, check: Callable[[], None]) -> None:
    """Delete a checkpoint. The rename hides it at once, so no reader finds it half deleted; it
    comes back if `check` raises after it."""
    hidden = folder.with_name(f".tmp-pruned-{step_of(folder) or 0:08d}-{session}")
    check()
    folder.rename(hidden)
    try:
        check()
    except BaseException:
        with contextlib.suppress(OSError):
            hidden.rename(folder)
        raise
    shutil.rmtree(hidden)


def remove_stale(path: Path, session: str, check: Callable[[], None] = lambda: None) -> None:
    """Delete the temporary folders of older sessions than `session`, which are dead or shut out.

    `check` raises where this process may write no more.
    """
    for entry in path.iterdir():
        match = _TEMPORARY.fullmatch(entry.name)
        if match and _is_older(match, session) and not entry.is_symlink():
            check()
            shutil.rmtree(entry)


def _is_older(match: re.Match[str], session: str) -> bool:
    own = _TEMPORARY.fullmatch(f".tmp-step-00000000-{session}")
    if match[2] and own and own[2]:
        return int(match[2]) < int(own[2])
    return match[1] != session
