"""Read checkpoints: any range of any logical tensor, checked against its SHA-256."""

import json
import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ... import UserError
from ..state.source import TensorInfo
from . import folder as disk
from .manifest import DTYPES, FIX, Manifest, Piece, TensorEntry, parse
from .plainfile import read_plain
from .shardfile import HASH_BYTES, ShardFile
from .strides import below, scatter, word_type, words

HASH_THREADS = min(8, os.cpu_count() or 1)
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Reader:
    """One complete checkpoint; `tensors` names every logical tensor, with dtype and shape.

    Opening it checks the marker, the manifest and the size of every file, not yet the data: each
    piece is hashed when it is first read. Data is read by ranges, so a narrow one of a checked
    piece costs only its own bytes. `verified` says that all data of the save with this `marker` was
    hashed a moment ago, by whoever chose it: then nothing is hashed again.

    Raises UserError, naming the file and what to do, for anything incomplete or damaged.
    """

    def __init__(self, folder: Path | str, verified: str | None = None) -> None:
        self.folder = Path(folder)
        self.marker, self._manifest = _load_manifest(self.folder)
        if verified not in (None, self.marker):
            raise UserError(
                f"{self.folder}: not the save that was chosen; this node sees other files than the "
                "first one: put checkpoint.path on a filesystem that all nodes share"
            )
        self._trusted = verified is not None
        for name, size in self._manifest.files.items():
            _check_size(self.folder / name, size)
        self.tensors = {
            name: TensorInfo(DTYPES[entry.dtype], tuple(entry.shape))
            for name, entry in self._manifest.tensors.items()
        }
        self._files: dict[str, ShardFile] = {}
        self._verified: set[tuple[str, str]] = set()

    @property
    def step(self) -> int:
        """The optimizer step after which it was saved."""
        return self._manifest.step

    @property
    def meta(self) -> dict[str, Any]:
        """The JSON object given to `Saver.save`."""
        return self._manifest.meta

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        entries = self._manifest.tensors.values()
        return sum(entry.numel * entry.itemsize for entry in entries)

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file."""
        return dict(self._manifest.files)

    @property
    def num_pieces(self) -> int:
        """Pieces of all tensors."""
        return sum(len(entry.pieces) for entry in self._manifest.tensors.values())

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        """Elements [offset, offset + numel) of the flattened tensor, as a new 1-D CPU tensor.

        `numel` None reads to the end. Raises UserError for a tensor or range that the checkpoint
        does not hold, and for a piece whose SHA-256 differs from the manifest's.
        """
        entry = self.entry(name)
        end = entry.numel if numel is None else offset + numel
        if not 0 <= offset <= end <= entry.numel:
            raise UserError(
                f"{self.folder}: {name!r} has {entry.numel} elements, [{offset}, {end}) was asked: "
                "the model in the config differs from the one that was saved"
            )
        result = torch.empty(end - offset, dtype=DTYPES[entry.dtype])
        out = words(result)
        for piece in self._meeting(entry, offset, end):
            self._check(name, entry, piece)
            self._fill(name, entry, piece, offset, out)
        return result

    def read_into(self, name: str, offset: int, out: np.ndarray) -> list[tuple[Piece, np.ndarray]]:
        """Fill `out` (unsigned integers of the element's size) from element `offset` on.

        Unlike `read` it hashes nothing. The caller gets each piece that was read and what it gave,
        in the piece's own order, and checks the SHA-256 when it has all of the piece.
        """
        entry = self.entry(name)
        meeting = self._meeting(entry, offset, offset + len(out))
        return [(piece, self._fill(name, entry, piece, offset, out)) for piece in meeting]

    def check(self, name: str) -> None:
        """Hash the tensor's pieces where that was not done. Raises UserError on damage."""
        entry = self.entry(name)
        for piece in entry.pieces:
            self._check(name, entry, piece)

    def entry(self, name: str) -> TensorEntry:
        """What the manifest says of a tensor. Raises UserError for one that it lacks."""
        entry = self._manifest.tensors.get(name)
        if entry is None:
            raise UserError(
                f"{self.folder}: no tensor {name!r}: the model or optimizer in the config differs "
                "from the one that was saved"
            )
        return entry

    def damage(self, name: str, piece: Piece) -> UserError:
        """The error to raise for a piece whose SHA-256 differs from the manifest's."""
        return self._damaged(name, piece, "SHA-256 differs from the manifest's")

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Check every piece; `progress(done, total)` gets bytes. Raises UserError on damage."""
        done, total = 0, self.nbytes
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            for nbytes in pool.map(lambda item: self._check(*item), self._pieces()):
                done += nbytes
                if progress:
                    progress(done, total)

    def _pieces(self) -> Iterator[tuple[str, TensorEntry, Piece]]:
        for name, entry in self._manifest.tensors.items():
            for piece in entry.pieces:
                yield name, entry, piece

    def _meeting(self, entry: TensorEntry, first: int, last: int) -> Iterator[Piece]:
        """The pieces that hold elements of [first, last)."""
        pieces = entry.pieces if first < last else []
        behind = bisect_left(pieces, last, key=lambda piece: piece.offset)
        for piece in reversed(pieces[:behind]):
            if below(piece, first) < below(piece, last):
                yield piece
            elif entry.plain:
                return

    def _check(self, name: str, entry: TensorEntry, piece: Piece) -> int:
        """Hash the piece if this is its first use; its bytes."""
        nbytes = piece.numel * entry.itemsize
        if not self._trusted and (piece.file, piece.key) not in self._verified:
            buffer = memoryview(bytearray(min(nbytes, HASH_BYTES)))
            with self._reading(name, piece):
                sha256 = self._find(entry, piece)[0].sha256(piece.key, buffer)
            if sha256 != piece.sha256:
                raise self.damage(name, piece)
            self._verified.add((piece.file, piece.key))
        return nbytes

    def _fill(
        self, name: str, entry: TensorEntry, piece: Piece, first: int, out: np.ndarray
    ) -> np.ndarray:
        """Put the piece's elements inside [first, first + len(out)) into `out`; they alone."""
        begin, end = below(piece, first), below(piece, first + len(out))
        if piece.rows == 1:
            at = piece.offset + begin - first
            data = out[at : at + end - begin]
        else:
            data = np.empty(end - begin, word_type(entry.itemsize))
        with self._reading(name, piece):
            file, position = self._find(entry, piece)
            file.read_into(position + begin * entry.itemsize, data.view(np.uint8).data)
        if piece.rows > 1:
            scatter(piece, first, out, data)
        return data

    @contextmanager
    def _reading(self, name: str, piece: Piece) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise self._damaged(name, piece, _reason(error)) from None

    def _find(self, entry: TensorEntry, piece: Piece) -> tuple[ShardFile, int]:
        """The piece's file, and the byte at which its data begins."""
        file = self._open(piece.file)
        dtype, shape, position = file.find(piece.key)
        if dtype != DTYPES[entry.dtype] or shape != (piece.numel,):
            raise ValueError(f"it is {dtype} {list(shape)}")
        return file, position

    def _open(self, file: str) -> ShardFile:
        if file not in self._files:
            self._files[file] = ShardFile(self.folder / file)
        return self._files[file]

    def _damaged(self, name: str, piece: Piece, why: str) -> UserError:
        where = f"damaged at {name!r} [{piece.offset}, {piece.end})"
        return UserError(
            f"{self.folder / piece.file}: {where}, or not the file that was saved ({why}): {FIX}"
        )


def verify(folder: Path | str, progress: Callable[[int, int], None] | None = None) -> Reader:
    """Open a checkpoint and check all its data. Raises UserError on any damage."""
    reader = Reader(folder)
    reader.verify(progress)
    return reader


def complete(path: Path | str) -> list[Path]:
    """The complete checkpoints under `path`, ascending by step; their data is not hashed."""
    return _look(path, lambda look: look.complete())


def latest(path: Path | str) -> Path | None:
    """The newest complete checkpoint; newer incomplete ones are logged as a warning."""
    newest, problems = _look(path, lambda look: look.newest(data=False))
    for found in problems:
        _log.warning("skipping checkpoint: %s", found)
    return newest


def choose(path: Path | str, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose data all verifies; `report` gets a line for each one skipped.

    Deletes nothing. None if no save was ever committed. Raises UserError if saves were committed
    but every one is damaged: starting over silently would waste the run.
    """
    newest, problems = _look(path, lambda look: look.newest(data=True))
    for found in problems:
        report(f"skipping checkpoint: {found}")
    if newest is None:
        damaged = [f.name for f in disk.step_folders(Path(path)) if (f / disk.MARKER).exists()]
        if damaged:
            raise UserError(
                f"{path}: every committed checkpoint is damaged ({', '.join(damaged)}): restore "
                "one, or set checkpoint.path to a new folder to start over"
            )
    return newest


class _MovedError(Exception):
    """A checkpoint went away, or another one came in its place, while it was looked at."""


class _Look:
    """One look at the checkpoints under a path. Raises _MovedError where a save got between."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = _change(path.resolve())
        self._folders = disk.step_folders(path)

    def complete(self) -> list[Path]:
        found = [folder for folder in self._folders if self._problem(folder, False) is None]
        self._check_listing(found)
        return found

    def newest(self, data: bool) -> tuple[Path | None, list[str]]:
        """The newest without a problem, and the problems of those that are newer."""
        problems: list[str] = []
        for folder in reversed(self._folders):
            found = self._problem(folder, data)
            if found is None:
                return folder, problems
            problems.append(found)
        self._check_listing([])
        return None, problems

    def _problem(self, folder: Path, data: bool) -> str | None:
        before = _change(folder)
        found = problem(folder, data)
        if found is not None and (before is None or _change(folder) != before):
            raise _MovedError
        return found

    def _check_listing(self, found: list[Path]) -> None:
        """A listing may lack what was renamed meanwhile: none at all is worth another one."""
        seen = disk.step_folders(self._path)
        if not found and (seen != self._folders or _change(self._path.resolve()) != self._before):
            raise _MovedError


def _look(path: Path | str, ask: Callable[[_Look], T]) -> T:
    """Ask a look that no save has disturbed. Each of them has to end before it is over, so it is
    a matter of very few."""
    while True:
        try:
            return ask(_Look(Path(path)))
        except _MovedError:
            continue


def _change(path: Path) -> tuple[int, int] | None:
    """Differs once entries came or went, or another folder has the name; None: there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def problem(folder: Path, data: bool = False) -> str | None:
    """Why the checkpoint cannot be used, or None; `data` also checks every piece."""
    try:
        reader = Reader(folder)
        if disk.step_of(folder) != reader.step:
            return f"{folder}: holds step {reader.step}: give the folder its own step's name"
        if data:
            reader.verify()
    except UserError as error:
        return str(error)
    return None


def is_whole(folder: Path) -> bool:
    """Whether a save ended there and its files have their sizes. Much quicker than `problem`: what
    the marker vouches for is not validated again."""
    try:
        manifest = json.loads(_vouched(folder)[1])
        for name, size in manifest["files"].items():
            _check_size(folder / name, size)
        return bool(manifest["step"] == disk.step_of(folder))
    except (UserError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _load_manifest(folder: Path) -> tuple[str, Manifest]:
    """The marker's text, and what it vouches for."""
    marker, text = _vouched(folder)
    return marker, parse(text, str(folder / disk.MANIFEST))


def _vouched(folder: Path) -> tuple[str, bytes]:
    marker = _read(folder / disk.MARKER, f"the save never finished: {FIX}")
    text = _read(folder / disk.MANIFEST, FIX)
    if marker != disk.marker_text(text).encode():
        raise UserError(
            f"{folder / disk.MANIFEST}: does not match {disk.MARKER}; it was edited, or comes from "
            f"another save: {FIX}"
        )
    return marker.decode(), text


def _read(file: Path, fix: str) -> bytes:
    try:
        return read_plain(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({_reason(error)}): {fix}") from None


def _check_size(file: Path, size: int) -> None:
    try:
        found = disk.regular_size(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({_reason(error)}): {FIX}") from None
    if found != size:
        raise UserError(f"{file}: {found} bytes, but {size} were saved: {FIX}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
