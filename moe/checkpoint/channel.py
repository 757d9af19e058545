"""Bytes between the ranks of one saver, over its own gloo group."""

from datetime import timedelta

import torch
import torch.distributed as dist

# Rank 0 may hash a whole earlier checkpoint while the others wait; a rank that died is noticed at
# once, since its connection closes.
TIMEOUT = timedelta(minutes=60)


class RankChannel:
    """Gather and broadcast bytes; a world of one talks to itself. Making it is collective.

    Raises RuntimeError if a rank is lost or the channel is closed.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank = rank
        self._world_size = world_size
        self._closed = False
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if world_size > 1 else None

    def gather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, by rank, on rank 0; nothing on the others."""
        self._check_open()
        if self._group is None:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self._world_size)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
        width = max(int(size) for size in sizes)
        buffers = None
        if self._rank == 0:
            buffers = [torch.empty(width, dtype=torch.uint8) for _ in sizes]
        dist.gather(_padded(data, width), buffers, dst=0, group=self._group)
        return [_bytes(buffer[: int(n)]) for buffer, n in zip(buffers or [], sizes, strict=False)]

    def broadcast(self, data: bytes) -> bytes:
        """Rank 0's bytes on every rank."""
        self._check_open()
        if self._group is None:
            return data
        size = torch.tensor([len(data)])
        dist.broadcast(size, src=0, group=self._group)
        buffer = _padded(data, int(size)) if self._rank == 0 else _padded(b"", int(size))
        dist.broadcast(buffer, src=0, group=self._group)
        return _bytes(buffer)

    def close(self) -> None:
        """Release the group; ranks that wait in it get an error."""
        self._closed = True
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the saver was closed, or lost a rank in an earlier save")


def _padded(data: bytes, width: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(data.ljust(width, b"\0")), dtype=torch.uint8)


def _bytes(data: torch.Tensor) -> bytes:
    return data.numpy().tobytes()
