"""Megatron-Core's IndexedDataset files: tokens in `<prefix>.bin`, their bounds in `<prefix>.idx`.

The .idx holds, little-endian: magic, version (u64), dtype code (u8), sequence count (u64), length
of the document index (u64), then sequence lengths (i32), byte offsets of the sequences in the .bin
(i64), and the document index (i64): the number of sequences before each document, and after all.
"""

import hashlib
import os
import struct
import uuid
from array import array
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from ... import UserError
from .files import open_regular

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
"""Integer dtypes by Megatron's code (6 and 7 are floats, no tokens)."""
MAX_LENGTH = 2**31 - 1
COPY_BYTES = 2**24


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that holds the ids [0, vocab_size)."""
    if vocab_size <= 2**8:
        return DTYPES[1]
    return DTYPES[8] if vocab_size <= 2**16 else DTYPES[4]


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class IndexedReader:
    """Memory-mapped dataset at `<prefix>.bin` and `.idx`.

    `tokens` [total]: all tokens. `offsets` [documents + 1] int64: where each document starts in
    `tokens`, and the total. `lengths` [sequences] int32 and `documents` [documents + 1] int64 are
    the stored index. Raises UserError if a file is missing or damaged.
    """

    def __init__(self, prefix: Path) -> None:
        self.bin_path = prefix.with_name(prefix.name + ".bin")
        self.idx_path = prefix.with_name(prefix.name + ".idx")
        self.dtype, sequences, entries = self._header()
        arrays = self._index(sequences, entries)
        self.lengths, pointers, self.documents = arrays
        ends = self._check(pointers)
        self.offsets = ends[self.documents]
        self.tokens = self._map(self.bin_path).view(self.dtype)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.documents) - 1

    def __getitem__(self, document: int) -> np.ndarray:
        """Tokens of one document (a view of the file)."""
        return self.tokens[self.offsets[document] : self.offsets[document + 1]]

    def _header(self) -> tuple[np.dtype, int, int]:
        raw = self._map(self.idx_path)[: HEADER.size].tobytes()
        if raw[: len(MAGIC)] != MAGIC:
            raise self._damaged(self.idx_path, f"it does not start with {MAGIC!r}")
        if len(raw) < HEADER.size:
            raise self._damaged(self.idx_path, f"its header stops after {len(raw)} bytes")
        _, version, code, sequences, entries = HEADER.unpack(raw)
        if version != VERSION:
            raise self._damaged(self.idx_path, f"its version is {version}, not {VERSION}")
        if code not in DTYPES:
            raise self._damaged(self.idx_path, f"dtype code {code} is no integer type")
        return DTYPES[code], sequences, entries

    def _index(self, sequences: int, entries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = self._map(self.idx_path)
        expected = HEADER.size + 12 * sequences + 8 * entries
        if index.size != expected:
            raise self._damaged(
                self.idx_path,
                f"it has {index.size} bytes, but {sequences} sequences take {expected}",
            )
        lengths = np.frombuffer(index, "<i4", sequences, HEADER.size)
        pointers = np.frombuffer(index, "<i8", sequences, HEADER.size + 4 * sequences)
        documents = np.frombuffer(index, "<i8", entries, HEADER.size + 12 * sequences)
        return lengths, pointers, documents

    def _check(self, pointers: np.ndarray) -> np.ndarray:
        """Compare lengths, byte offsets and file size; return the sequences' bounds in tokens."""
        if self.lengths.size and self.lengths.min() < 0:
            raise self._damaged(self.idx_path, "it has a negative sequence length")
        ends = np.zeros(self.lengths.size + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=ends[1:])
        if not np.array_equal(pointers, ends[:-1] * self.dtype.itemsize):
            raise self._damaged(self.idx_path, "its byte offsets do not match its lengths")
        bounds = self.documents
        if not bounds.size or bounds[0] != 0 or bounds[-1] != self.lengths.size:
            raise self._damaged(self.idx_path, "its documents do not cover its sequences")
        if (np.diff(bounds) < 0).any():
            raise self._damaged(self.idx_path, "its document index falls")
        size, expected = self._map(self.bin_path).size, int(ends[-1]) * self.dtype.itemsize
        if size != expected:
            raise self._damaged(
                self.bin_path, f"it has {size} bytes, but {self.idx_path.name} counts {expected}"
            )
        return ends

    def _map(self, path: Path) -> np.ndarray:
        """The file's bytes as [size] uint8; an empty file cannot be mapped."""
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size == 0:
                    return np.zeros(0, dtype=np.uint8)
                return np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
        except OSError as error:
            raise self._damaged(path, f"cannot be read ({error.strerror})") from error

    def _damaged(self, path: Path, why: str) -> UserError:
        return UserError(f"{path}: {why}; prepare the dataset again or restore the file")


class IndexedWriter:
    """Streams documents to `<prefix>.bin` and `.idx`.

    Both are written under temporary names and take their own in `finish`, the .idx last. Used as a
    context manager, it finishes on success and leaves nothing behind on an error.
    """

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.tokens = 0
        self.documents = 0
        self._lengths = array("i")
        self._bounds = array("q", [0])
        self._hash = hashlib.sha256()
        suffix = f".{uuid.uuid4().hex[:8]}.tmp"
        self._paths = [
            (prefix.with_name(prefix.name + kind + suffix), prefix.with_name(prefix.name + kind))
            for kind in (".bin", ".idx")
        ]
        self._file = self._paths[0][0].open("w+b")

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
            return
        self._file.close()
        for temporary, _ in self._paths:
            temporary.unlink(missing_ok=True)

    def add(self, tokens: np.ndarray, *, last: bool = True) -> None:
        """Append one sequence of 1-D `tokens`, the `last` one of its document or not. ValueError if
        an id overflows."""
        values = tokens.astype(self.dtype)
        if values.size > MAX_LENGTH:
            raise UserError(
                f"a document has {values.size} tokens, above the format's {MAX_LENGTH}: split it"
            )
        if not np.can_cast(tokens.dtype, self.dtype) and not np.array_equal(values, tokens):
            raise ValueError(f"token ids do not fit {self.dtype}")
        data = values.tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._lengths.append(values.size)
        self.tokens += values.size
        if last:
            self._bounds.append(len(self._lengths))
            self.documents += 1

    @property
    def last_length(self) -> int:
        """Tokens of the last document."""
        first, end = self._bounds[-2:]
        return sum(self._lengths[first:end])

    def move_tail(self, count: int, end: int, other: "IndexedWriter") -> None:
        """Make the last `count` tokens, fewer than the last document has, a document of `other`;
        the token `end` takes their place."""
        size = self.dtype.itemsize
        keep = (self.tokens - count) * size
        self._file.seek(keep)
        while block := self._file.read(COPY_BYTES):
            moved = np.frombuffer(block, dtype=self.dtype)
            other.add(moved, last=self._file.tell() == self.tokens * size)
        self._truncate(keep)
        self._bounds.pop()
        self.documents -= 1
        while count:
            cut = min(count, self._lengths[-1])
            self._lengths[-1] -= cut
            count -= cut
            if not self._lengths[-1]:
                self._lengths.pop()
        self.add(np.array([end]))

    def _truncate(self, size: int) -> None:
        self._file.truncate(size)
        self._file.seek(0)
        self._hash = hashlib.sha256()
        while block := self._file.read(COPY_BYTES):
            self._hash.update(block)
        self.tokens = size // self.dtype.itemsize

    @property
    def sha256(self) -> str:
        """Hash of the .bin so far."""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Write the index and give both files their names."""
        self._sync(self._file)
        self._file.close()
        with self._paths[1][0].open("wb") as index:
            self._write_index(index)
            self._sync(index)
        for temporary, path in self._paths:
            temporary.replace(path)
        fsync_folder(self._paths[0][1].parent)

    def _write_index(self, index: BinaryIO) -> None:
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        count = len(self._lengths)
        lengths = np.frombuffer(self._lengths, dtype=np.int32).astype("<i4")
        pointers = np.zeros(count, dtype="<i8")
        np.cumsum(lengths[:-1], out=pointers[1:])
        pointers *= self.dtype.itemsize
        index.write(HEADER.pack(MAGIC, VERSION, code, count, len(self._bounds)))
        index.write(lengths.tobytes())
        index.write(pointers.tobytes())
        index.write(np.frombuffer(self._bounds, dtype=np.int64).astype("<i8").tobytes())

    @staticmethod
    def _sync(file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())
