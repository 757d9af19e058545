"""One node's memory folder of a run: where it lies, and what it holds."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .... import UserError
from .. import folder as disk
from ..manifest import DTYPES, Manifest, parse
from ..shardfile import HASH_BYTES, ShardFile

VARIABLE = "MOELSTROM_MEMORY"
DEFAULT = "/dev/shm"
IDENTITY = "replicas.id"
_IDENTITY = re.compile(r"[0-9a-f]{16}")


def identity(run: Path) -> str:
    """The random name of this run, kept in its folder: a run that was deleted and started over must
    not find the memory of the old one."""
    file = run / IDENTITY
    try:
        run.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), file.open("x") as new:
            new.write(secrets.token_hex(8))
        found = file.read_text()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give an output folder to write") from None
    if not _IDENTITY.fullmatch(found):
        raise UserError(f"{file}: holds no identity of a run; delete this file")
    return found


def prepare(run: Path, name: str) -> Path:
    """This user's memory folder of the run with the identity `name`, private to the user.

    Folders of runs that lay in the same place before are deleted. Raises UserError where the
    folder cannot be made or belongs to somebody else.
    """
    root = Path(os.environ.get(VARIABLE) or DEFAULT)
    place = hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:16]
    prefix = f"moelstrom-{os.getuid()}-{place}-"
    mine = root / f"{prefix}{name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        mine.mkdir(mode=0o700, exist_ok=True)
        found = mine.lstat()
        for other in root.glob(f"{prefix}*"):
            if other != mine and not other.is_symlink():
                shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{VARIABLE} {root}: {error.strerror}; name a folder in memory, or set "
            "checkpoint.replicas: false"
        ) from None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not private or found.st_mode & 0o077:
        raise UserError(f"{mine}: not a folder that is this user's alone; remove it")
    return mine


def node_name(memory: Path) -> str:
    """The same for all ranks that share the folder, and for no others."""
    found = memory.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{found.st_dev}/{found.st_ino}"


def claims(memory: Path) -> Iterator[dict[str, Any]]:
    """The saves of which this node holds files of the right size, as `plan.candidates` takes them.

    Data is not hashed yet. What is unusable is passed over.
    """
    for folder in disk.step_folders(memory):
        try:
            text = (folder / disk.MANIFEST).read_bytes()
            marker = (folder / disk.MARKER).read_bytes()
            manifest = parse(text, str(folder))
        except (OSError, UserError):
            continue
        if marker == disk.marker_text(text).encode() and disk.step_of(folder) == manifest.step:
            files = [name for name, size in manifest.files.items() if _holds(folder / name, size)]
            sha256 = hashlib.sha256(text).hexdigest()
            claim = {"step": manifest.step, "manifest": sha256, "sizes": manifest.files}
            if files:
                yield {**claim, "files": files}


def damage(file: Path, manifest: Manifest) -> str:
    """What is wrong with one file of a checkpoint, every piece hashed; empty: nothing."""
    if not _holds(file, manifest.files[file.name]):
        return f"{file}: missing, or not of the size that was saved"
    buffer = memoryview(bytearray(HASH_BYTES))
    try:
        opened = ShardFile(file)
        for name, entry in manifest.tensors.items():
            kind = DTYPES[entry.dtype]
            for piece in (piece for piece in entry.pieces if piece.file == file.name):
                if opened.find(piece.key)[:2] != (kind, (piece.numel,)):
                    return f"{file}: {name!r} has another type or shape than was saved"
                if opened.sha256(piece.key, buffer) != piece.sha256:
                    return f"{file}: SHA-256 of {name!r} differs from the manifest's"
    except (OSError, ValueError) as error:
        return f"{file}: {' '.join(str(error).split())}"
    return ""


def _holds(file: Path, size: int) -> bool:
    try:
        return disk.regular_size(file) == size
    except (OSError, ValueError):
        return False
