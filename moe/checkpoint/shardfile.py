"""Read byte ranges of a safetensors file without mapping it: memory stays what the caller gives."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from .plainfile import open_plain
from .tensorfile import CODES

DTYPES_BY_CODE = {code: dtype for dtype, code in CODES.items()}
MAX_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""
HASH_BYTES = 2**22
"""Read and hashed at once, where nothing else limits it."""


class ShardFile:
    """An open safetensors file. Reads may come from many threads.

    Raises OSError, or ValueError for a file that is none or whose header contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(open_plain(path, links=True), "rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size
        self._header, self._start = self._load_header()
        self._found: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}

    def keys(self) -> list[str]:
        """The names of its tensors."""
        return list(self._header)

    def find(self, key: str) -> tuple[torch.dtype, tuple[int, ...], int]:
        """A tensor's dtype, shape, and the byte at which its data begins."""
        if key not in self._found:
            self._found[key] = self._find(key)
        return self._found[key]

    def _find(self, key: str) -> tuple[torch.dtype, tuple[int, ...], int]:
        entry = self._header.get(key)
        if not isinstance(entry, dict):
            raise ValueError(f"it has no tensor {key!r}")
        dtype = DTYPES_BY_CODE.get(str(entry.get("dtype")))
        shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
        if dtype is None or shape is None or offsets is None or len(offsets) != 2:
            raise ValueError(f"its header is wrong at {key!r}")
        begin, end = (self._start + offset for offset in offsets)
        if end - begin != math.prod(shape) * dtype.itemsize or end > self._size:
            raise ValueError(f"its header is wrong at {key!r}")
        return dtype, tuple(shape), begin

    def read_into(self, position: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `position` on."""
        while out:
            count = os.preadv(self._file.fileno(), [out], position)
            if not count:
                raise ValueError(f"it ends at byte {position}")
            out, position = out[count:], position + count

    def sha256(self, key: str, buffer: memoryview) -> str:
        """Of a tensor's bytes, read through `buffer`."""
        dtype, shape, position = self.find(key)
        sha, left = hashlib.sha256(), math.prod(shape) * dtype.itemsize
        while left:
            data = buffer[:left]
            self.read_into(position, data)
            sha.update(data)
            position, left = position + len(data), left - len(data)
        return sha.hexdigest()

    def _load_header(self) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(self._file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, self._size - 8):
            raise ValueError("no safetensors file")
        text = bytearray(length)
        self.read_into(8, memoryview(text))
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise ValueError("no safetensors file: its header is not JSON")
        header.pop("__metadata__", None)
        return header, 8 + length


def _counts(value: object) -> list[int] | None:
    """The list itself if it holds only counts that can be real."""
    if not isinstance(value, list) or len(value) > 64:
        return None
    good = all(type(item) is int and 0 <= item < 2**62 for item in value)
    return value if good else None
