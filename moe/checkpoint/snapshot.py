"""A private copy of one rank's shards in host memory, so that training may go on."""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from .manifest import DTYPE_NAMES
from .state import Shard


class Snapshot:
    """One save's data on the host: `shards` by key own their memory, `meta` is JSON text.

    `tensors` declares every logical tensor, also where this rank's part is empty. Every save
    reuses the buffers of `before`, whose write has ended: fresh pages cost more than the copy.
    Raises ValueError or TypeError for a shard that breaks its contract or meta that is not JSON.
    """

    def __init__(
        self, shards: Sequence[Shard], meta: dict[str, Any], before: "Snapshot | None"
    ) -> None:
        self.meta = json.dumps(meta, allow_nan=False)
        self.shards: dict[str, Shard] = {}
        self.tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        old = before.shards if before else {}
        for shard in shards:
            self._declare(shard)
            if shard.data.numel():
                self._copy(shard, old)
        for device in {shard.data.device for shard in shards if shard.data.is_cuda}:
            torch.cuda.synchronize(device)

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

    def _copy(self, shard: Shard, old: dict[str, Shard]) -> None:
        key, data = f"{shard.name}@{shard.offset}", shard.data
        if key in self.shards:
            raise ValueError(f"shard {key!r} was given twice")
        host = old.pop(key).data if key in old else None
        if host is None or host.dtype != data.dtype or host.shape != data.shape:
            host = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
        host.copy_(data, non_blocking=True)
        self.shards[key] = Shard(shard.name, shard.shape, shard.offset, host)
