"""The state of a model that nobody trained, to measure with: random bits, canonical names."""

import math
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...config import ModelConfig, OptimizerConfig
from ...optim.rules import STATE, rule
from ...state.source import TensorInfo
from ..layouts.parameters import Skeleton

RANDOM_STATE = 5056
"""Bytes of a CPU generator's."""


class Synthetic:
    """A `Source` of `model` and its optimizer's state in fp32; the same for the same `seed`."""

    def __init__(
        self, folder: Path, model: ModelConfig, optimizer: OptimizerConfig, seed: int = 0
    ) -> None:
        self.folder, self.step = folder, 1
        self._seed = seed
        self.tensors: dict[str, TensorInfo] = dict(_tensors(model, optimizer))
        config = {"optimizer": optimizer.model_dump(mode="json")}
        self.meta: dict[str, Any] = {
            "data": {"seed": seed},
            "config": config,
            "model": model.model_dump(mode="json"),
        }

    @cached_property
    def _pool(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self._seed)
        return torch.randint(2**31, (2**20 + 7,), generator=generator, dtype=torch.int32)

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        """Elements of a tensor, a range of the pool that begins where the name's checksum says."""
        info = self.tensors[name]
        size = math.prod(info.shape) - offset if numel is None else numel
        words = -(-(offset + size) * info.dtype.itemsize // 4)
        skipped = offset * info.dtype.itemsize // 4
        index = torch.arange(skipped, words) + zlib.crc32(name.encode())
        data = self._pool[index % len(self._pool)].view(info.dtype)
        first = offset - skipped * 4 // info.dtype.itemsize
        return data[first : first + size]


def _tensors(model: ModelConfig, optimizer: OptimizerConfig) -> Iterator[tuple[str, TensorInfo]]:
    skeleton = Skeleton(model)
    for p in skeleton.parameters:
        update = rule(p.spec, optimizer)
        for t in p.logicals():
            for prefix in ("model", *(f"{update}/{key}" for key in STATE[update])):
                yield f"{prefix}/{t.name}", TensorInfo(torch.float32, t.shape)
    for name, spec in skeleton.buffers:
        yield f"model/{name}", TensorInfo(torch.float32, spec.shape)
    yield "rng/0/cpu", TensorInfo(torch.uint8, (RANDOM_STATE,))
