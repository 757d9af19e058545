"""Where a dataset grows: a hidden folder beside its place, with what is finished noted in it.

A preparation that ended early leaves the domains it had finished; the next one of the same dataset
goes on from them. A lock, which ends with its process, tells a folder at work from one left behind.
"""

import fcntl
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .dataset import MANIFEST, SPLITS, DomainInfo
from .files import read_regular
from .indexed import fsync_folder

LOCK, DONE = ".lock", ".done.json"


class Workspace:
    """A folder of this process alone. `key` of a domain says what it is made of."""

    def __init__(self, folder: Path, lock: int, keys: dict[str, str]) -> None:
        self.folder = folder
        self.keys = keys
        self.done = _finished(folder, keys)
        self._lock = lock

    def finish(self, domain: str, info: DomainInfo) -> None:
        """Note that a domain's files are whole."""
        self.done[domain] = info
        notes = {
            name: {"key": self.keys[name], "info": made.model_dump()}
            for name, made in self.done.items()
        }
        pending = self.folder / f"{DONE}.pending"
        pending.write_text(json.dumps(notes), encoding="utf-8")
        pending.replace(self.folder / DONE)

    def publish(self, out: Path) -> bool:
        """Give the folder its name; False if another process has given it to its own."""
        (self.folder / DONE).unlink(missing_ok=True)
        try:
            self.folder.rename(out)  # replaces nothing but an empty folder
        except OSError:
            if not (out / MANIFEST).exists():
                raise
            self.done.clear()
            return False
        (out / LOCK).unlink()
        fsync_folder(out.parent)
        return True

    def close(self) -> None:
        """Leave the folder to the next process if a domain in it is finished, else remove it."""
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def workspace(out: Path, keys: dict[str, str]) -> Iterator[Workspace]:
    """A folder beside `out` to prepare the domains `keys` in: one left behind, or a new one."""
    made = _left(out, keys) or _new(out, keys)
    try:
        yield made
    finally:
        made.close()


def _new(out: Path, keys: dict[str, str]) -> Workspace:
    stem = f".{out.name}.{uuid.uuid4().hex[:8]}"
    hidden, folder = out.with_name(f"{stem}.new"), out.with_name(f"{stem}.tmp")
    hidden.mkdir(parents=True)
    lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    with suppress(OSError):  # where a file system has no locks, nothing is taken over either
        fcntl.flock(lock, fcntl.LOCK_EX)
    # Only now, locked, is it to be seen.
    hidden.rename(folder)
    return Workspace(folder, lock, keys)


def _left(out: Path, keys: dict[str, str]) -> Workspace | None:
    """A folder whose process is gone, with the domains that it finished and are wanted still; what
    is of no use is removed."""
    pattern = f".{glob.escape(out.name)}.????????.tmp"
    for folder in sorted(out.parent.glob(pattern)):
        lock = _take(folder)
        if lock is None:
            continue
        made = Workspace(folder, lock, keys)
        if made.done:
            _tidy(folder, made.done)
            return made
        made.close()
    return None


def _take(folder: Path) -> int | None:
    """The lock of a folder that nobody works in, and that is still there."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _finished(folder: Path, keys: dict[str, str]) -> dict[str, DomainInfo]:
    """The domains that are whole in the folder, and made of what `keys` says."""
    try:
        notes = json.loads(read_regular(folder / DONE))
        made = {
            name: DomainInfo.model_validate(notes[name]["info"])
            for name, key in keys.items()
            if name in notes and notes[name]["key"] == key
        }
        return {name: info for name, info in made.items() if _whole(folder, name, info)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _whole(folder: Path, name: str, info: DomainInfo) -> bool:
    return all(
        (folder / f"{name}-{split}.{kind}").stat().st_size == size
        for split, made in (("train", info.train), ("valid", info.valid))
        for kind, size in (("bin", made.bin_bytes), ("idx", made.idx_bytes))
    )


def _tidy(folder: Path, done: dict[str, DomainInfo]) -> None:
    """Remove what is of no finished domain."""
    kept = {f"{name}-{split}" for name in done for split in SPLITS}
    for file in folder.iterdir():
        if file.name not in (LOCK, DONE) and file.stem not in kept:
            file.unlink()
