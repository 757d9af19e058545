"""Files of torch.save, read without torch.load: any range of any tensor, and no code.

They are zip archives without compression: `data.pkl` names the tensors, `data/0`, `data/1` and so
on are their storages. A storage is checked against its CRC-32 when it is first read.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from .... import UserError
from .. import folder as disk
from ..plainfile import open_plain
from .pickles import MAX_PICKLE, PickleLoader, RefusedError, explain, shown
from .values import Values

FIX = "give another checkpoint, or restore this file from a copy"
_CHUNK = 4 << 20


class Window:
    """Bytes [start, start + size) of a plain file, read by position: threads may share it.

    The file is open only while it is read: a checkpoint may have more files than a process may
    hold open.
    """

    def __init__(self, file: Path, start: int = 0, size: int | None = None) -> None:
        self.file, self.start = file, start
        with refusing(file):
            total = disk.regular_size(file)
            self.size = total - start if size is None else size
            if not 0 <= start <= start + self.size <= total:
                raise ValueError(f"bytes [{start}, {start + self.size}) of {total}: truncated?")
        self._at = 0

    def fill(self, out: memoryview, position: int) -> None:
        """Read len(out) bytes at `position` of the window. Raises ValueError at the end."""
        if not 0 <= position <= position + len(out) <= self.size:
            raise ValueError("truncated")
        fd = open_plain(self.file)
        try:
            while out:
                got = os.preadv(fd, [out], self.start + position)
                if not got:
                    raise ValueError("truncated")
                out, position = out[got:], position + got
        finally:
            os.close(fd)

    def seekable(self) -> bool:
        """What zipfile asks first."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move as a file does."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if self._at < 0:
            raise OSError("before the beginning")
        return self._at

    def tell(self) -> int:
        """The position that `read` goes on from."""
        return self._at

    def read(self, count: int = -1) -> bytes:
        """Read as a file does."""
        left = max(self.size - self._at, 0)
        data = bytearray(left if count < 0 else min(count, left))
        self.fill(memoryview(data), self._at)
        self._at += len(data)
        return bytes(data)


@dataclass(frozen=True)
class Storage:
    """One record of the archive with the type of its elements."""

    record: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Stored:
    """A contiguous tensor in a file of torch.save."""

    file: "TorchFile"
    record: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    position: int
    """Elements from the beginning of its storage."""

    def read_into(self, out: torch.Tensor, start: int) -> None:
        """Fill `out` (1-D, contiguous, of `dtype`) from element `start` on."""
        if start + out.numel() > math.prod(self.shape):
            raise UserError(
                f"{self.file.window.file}: a tensor of {math.prod(self.shape)} elements, but "
                f"[{start}, {start + out.numel()}) belong to it: {FIX}"
            )
        self.file.fill(self.record, out, self.position + start)

    def number(self) -> float:
        """Its only element. Raises UserError where there are more."""
        return read_number(self, self.file.window.file)


def read_number(values: Values, file: Path) -> float:
    """The only element of a tensor in `file`. Raises UserError where there are more."""
    if math.prod(values.shape) != 1:
        raise UserError(f"{file}: a step has {shown(list(values.shape))} elements: {FIX}")
    out = torch.empty(1, dtype=values.dtype)
    values.read_into(out, 0)
    return float(out)


class _TensorLoader(PickleLoader):
    def __init__(self, data: bytes, file: "TorchFile") -> None:
        super().__init__(data)
        self._file = file

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that torch.save names by this tuple."""
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise RefusedError("it refers to something else than a storage")
        return Storage(f"data/{key}", dtype)

    def tensor(
        self, storage: Storage, dtype: torch.dtype, offset: int, shape: tuple, stride: tuple
    ) -> Stored:
        """The tensor, unread."""
        return self._file.stored(storage, dtype, offset, shape, stride)


class TorchFile:
    """One archive; `data` is the saved object, with a Stored in place of every tensor.

    `start` and `size` select the archive's bytes in a file that holds many. Raises UserError,
    naming the file, for anything that is not a whole archive or asks to run code.
    """

    def __init__(self, file: Path, start: int = 0, size: int | None = None) -> None:
        self.window = Window(file, start, size)
        with refusing(file):
            # zipfile asks only for what Window has.
            archive = zipfile.ZipFile(cast(IO[bytes], self.window))
            self._records = {i.filename.partition("/")[2]: i for i in archive.infolist()}
            for info in archive.infolist():
                self._check_record(info)
            if self._text(archive, "byteorder", b"little") != b"little":
                raise ValueError("its numbers are big-endian")
            text = self._text(archive, "data.pkl")
        self._checked: set[str] = set()
        try:
            self.data = _TensorLoader(text, self).load()
        except Exception as error:
            # A damaged pickle raises whatever its bytes happen to call.
            raise UserError(f"{file}: refused: {explain(error)}: {FIX}") from None

    def _text(self, archive: zipfile.ZipFile, name: str, default: bytes | None = None) -> bytes:
        info = self._records.get(name)
        if info is None and default is not None:
            return default
        if info is None or info.file_size > MAX_PICKLE:
            raise ValueError(f"no {name} in it that torch.save wrote")
        return archive.read(info)

    def _check_record(self, info: zipfile.ZipInfo) -> None:
        """Whether the record's bytes lie in the file as they are; what its entry claims would be
        reserved."""
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"{shown(info.filename)} is compressed, which torch.save never does")
        if not 0 <= info.header_offset <= self.window.size - info.file_size:
            raise ValueError(f"{shown(info.filename)} ends outside the file")

    def stored(
        self, storage: Storage, dtype: torch.dtype, offset: int, shape: tuple, stride: tuple
    ) -> Stored:
        """The tensor that the pickle describes, once it is seen to lie inside its storage."""
        if type(offset) is not int or offset < 0:
            raise RefusedError("a tensor has an impossible place")
        info, end = self._records.get(storage.record), offset + math.prod(shape)
        if info is None or end * dtype.itemsize > info.file_size:
            raise RefusedError(f"a tensor ends outside its storage {shown(storage.record)}")
        if not _contiguous(shape, stride):
            raise RefusedError("a tensor is not contiguous: save it as such")
        return Stored(self, storage.record, dtype, shape, offset)

    def fill(self, record: str, out: torch.Tensor, position: int) -> None:
        """Read elements from `position` of a storage on into `out`."""
        raw = out.view(torch.uint8).numpy().data
        with refusing(self.window.file):
            begin = self._begin(record)
            if record not in self._checked:
                self._check(record, begin)
                self._checked.add(record)
            self.window.fill(raw, begin + position * out.dtype.itemsize)

    def _begin(self, record: str) -> int:
        """Where the record's data begins: behind its own header, whose length the archive's
        directory does not tell."""
        info = self._records[record]
        head = bytearray(30)
        self.window.fill(memoryview(head), info.header_offset)
        if head[:4] != b"PK\3\4":
            raise ValueError(f"no record where {record} should begin")
        name, extra = (int.from_bytes(head[i : i + 2], "little") for i in (26, 28))
        return info.header_offset + 30 + name + extra

    def _check(self, record: str, begin: int) -> None:
        size, crc = self._records[record].file_size, 0
        buffer = memoryview(bytearray(min(_CHUNK, size)))
        for at in range(0, size, _CHUNK):
            part = buffer[: min(_CHUNK, size - at)]
            self.window.fill(part, begin + at)
            crc = zlib.crc32(part, crc)
        if crc != self._records[record].CRC:
            raise ValueError(f"CRC-32 of {record} differs from what was saved")


def _contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size == 0:
            return True
        if size > 1 and step != expected:
            return False
        expected *= size
    return True


@contextmanager
def understood(path: Path, writer: str) -> Iterator[None]:
    """Turn what a structure that `writer` never made raises into a UserError that names `path`."""
    try:
        yield
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        why = f"{type(error).__name__}: {shown(error)}"
        raise UserError(f"{path}: not as {writer} saves it ({why}): {FIX}") from None


@contextmanager
def refusing(file: Path) -> Iterator[None]:
    """Turn what a damaged or missing file raises into a UserError that names it."""
    try:
        yield
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or shown(error)
        raise UserError(f"{file}: cannot be read ({why}): {FIX}") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file}: damaged, or not a file of torch.save ({shown(error)}): {FIX}"
        ) from None
