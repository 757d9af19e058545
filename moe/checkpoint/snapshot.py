"""A private copy of one rank's shards in host memory, so that training may go on."""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..state.shard import Shard
from .manifest import DTYPE_NAMES

CHUNK = 256 << 20
"""Bytes of one allocation: a power of two, to which torch rounds pinned memory up."""
ALIGN = 64


class HostBuffers:
    """Host memory for shards, kept from save to save: fresh pages cost more than the copy.

    Pinned for shards that lie on a GPU.
    """

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def reserve(self, shards: Sequence[Shard]) -> None:
        """Allocate, and touch every page of, what is not there yet."""
        missing = [s for s in shards if s.data.numel() and not self._fits(s)]
        for pinned in (False, True):
            self._allocate([s for s in missing if s.data.is_cuda == pinned], pinned)

    def get(self, shard: Shard) -> torch.Tensor:
        """The buffer of a reserved shard, of its dtype and length."""
        return self._held[key_of(shard)]

    def _fits(self, shard: Shard) -> bool:
        held = self._held.get(key_of(shard))
        return held is not None and (held.dtype, held.shape) == (shard.data.dtype, shard.data.shape)

    def _allocate(self, shards: list[Shard], pinned: bool) -> None:
        sizes = [-(-shard.data.nbytes // ALIGN) * ALIGN for shard in shards]
        left, room = sum(sizes), torch.empty(0, dtype=torch.uint8)
        for shard, size in zip(shards, sizes, strict=True):
            if size > room.numel():
                room = _touched(max(size, min(CHUNK, left)), pinned)
            part, room = room[: shard.data.nbytes], room[size:]
            self._held[key_of(shard)] = part.view(shard.data.dtype)
            left -= size


class Snapshot:
    """One save's data on the host: `shards` by key lie in `buffers` until the next snapshot.

    `tensors` declares every logical tensor, also where this rank's part is empty.
    """

    def __init__(self, buffers: HostBuffers) -> None:
        self.shards: dict[str, Shard] = {}
        self.tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._buffers = buffers

    def add(self, shards: Sequence[Shard]) -> None:
        """Copy shards; from a GPU on the current stream, without waiting for the copy's end.

        Raises ValueError for a shard that breaks its contract.
        """
        for shard in shards:
            self._declare(shard)
        self._buffers.reserve(shards)
        for shard in shards:
            if shard.data.numel():
                self._copy(shard)

    def _declare(self, shard: Shard) -> None:
        data, total = shard.data, math.prod(shard.shape)
        if data.dtype not in DTYPE_NAMES:
            raise ValueError(f"shard {shard.name!r}: dtype {data.dtype} cannot be saved")
        if data.dim() != 1 or not data.is_contiguous():
            raise ValueError(f"shard {shard.name!r}: data must be contiguous and 1-D")
        end = shard.offset + data.numel()
        if not 0 <= shard.offset <= end <= total:
            raise ValueError(f"shard {shard.name!r}: [{shard.offset}, {end}) of {total} elements")
        kind = (data.dtype, tuple(shard.shape))
        if self.tensors.setdefault(shard.name, kind) != kind:
            raise ValueError(f"shard {shard.name!r}: its shards differ in dtype or shape")

    def _copy(self, shard: Shard) -> None:
        key = key_of(shard)
        if key in self.shards:
            raise ValueError(f"shard {key!r} was given twice")
        host = self._buffers.get(shard)
        copy(host, shard.data)
        self.shards[key] = Shard(shard.name, shard.shape, shard.offset, host)


class Turn:
    """The background copy's place between what training wrote before and what it writes next.

    Made on the training thread; `device` is the GPU that the shards lie on, if any. Its copies run
    on a stream of their own, so that the host never waits for training's kernels.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._device = device
        self._issued = threading.Event()
        if device is not None:
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
            self._copied = torch.cuda.Event()

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Copy inside this, on the background thread; on leaving, all copies have ended."""
        try:
            if self._device is None:
                yield
            else:
                with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                    yield
                    self._copied.record()
        finally:
            self._issued.set()
        if self._device is not None:
            self._copied.synchronize()

    def settle(self) -> None:
        """On the training thread: what it writes from here on, the copies do not see."""
        self._issued.wait()
        if self._device is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)


def key_of(shard: Shard) -> str:
    """The shard's key in its file."""
    return f"{shard.name}@{shard.offset}"


def copy(host: torch.Tensor, data: torch.Tensor) -> None:
    """Fill a host buffer with `data`; from a GPU, in its current stream's order."""
    if data.is_cuda:
        host.copy_(data, non_blocking=True)
    else:
        # torch's copy would start a second set of threads beside the training's.
        np.copyto(_bytes(host), _bytes(data))


def _bytes(data: torch.Tensor) -> np.ndarray:
    return data.detach().view(torch.uint8).numpy()


def _touched(nbytes: int, pinned: bool) -> torch.Tensor:
    chunk = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
    if not pinned:
        chunk.numpy().fill(0)
    return chunk
