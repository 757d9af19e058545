"""One safetensors file written in place: its header first, then any range of any tensor.

`safetensors.torch.save_file` needs every tensor whole in memory; a reshape has them in pieces, and
a save wants the disk's refusal before the data is written.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch

from ..state.source import TensorInfo
from .folder import flush

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' names of the types that a checkpoint may hold."""
FLUSHED_SOON = 2**18
"""Bytes in one write."""


class TensorFile:
    """A new file that will hold `tensors` (key -> dtype and shape), in this order.

    Its whole size is reserved at once, so that a full disk refuses it before any data moves.
    `keep` goes on with the data that a killed writer of the same tensors left.
    `write` may be called from many threads, for disjoint ranges; `close` flushes to disk. Raises
    OSError, and FlushError after which the file has to be written anew.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        metadata: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        text, self._starts, self.size = layout(tensors, metadata)
        self._itemsize = {key: info.dtype.itemsize for key, info in tensors.items()}
        truncate = 0 if keep else os.O_TRUNC
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | truncate, 0o644)
        try:
            if self.size:
                os.posix_fallocate(self._fd, 0, self.size)
            write_all(self._fd, memoryview(text), 0)
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, key: str, data: torch.Tensor, offset: int = 0) -> None:
        """Write `data` (contiguous, CPU) from element `offset` of the flattened tensor `key` on."""
        self.write_bytes(key, data.reshape(-1).view(torch.uint8).numpy().data, offset)

    def write_bytes(self, key: str, data: memoryview, offset: int = 0) -> None:
        """The same for raw bytes; large ones are on their way to the disk at once, so that `close`
        has less to wait for."""
        position = self._starts[key] + offset * self._itemsize[key]
        write_all(self._fd, data, position)
        if len(data) >= FLUSHED_SOON:
            # Of dirty pages the kernel only starts the write, and keeps them in its cache.
            os.posix_fadvise(self._fd, position, len(data), os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Flush to disk and close."""
        try:
            flush(self._fd)
        finally:
            os.close(self._fd)

    def abandon(self) -> None:
        """Close without flushing."""
        os.close(self._fd)

    def __enter__(self) -> "TensorFile":
        """The file itself; leaving without an error flushes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush and close, or only close after an error."""
        if kind is None:
            self.close()
        else:
            self.abandon()


def layout(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int], int]:
    """The file's first bytes (length and JSON header), where each tensor's data begins, and the
    file's size, all in bytes."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins, end = {}, 0
    for key, info in tensors.items():
        begins[key], end = end, end + math.prod(info.shape) * info.dtype.itemsize
        offsets = [begins[key], end]
        kind = {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
        entries[key] = kind
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {key: len(head) + begin for key, begin in begins.items()}, len(head) + end


def write_all(fd: int, data: memoryview, position: int) -> None:
    """Write all of `data` at byte `position`; one call of the kernel may take only a part."""
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written
