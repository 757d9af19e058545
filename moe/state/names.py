"""Canonical names: the one view of the state that no layout changes.

Every expert is a logical tensor of its own with its global id, such as
`layers.3.ffn.experts.17.gate_up`; every other parameter is one logical tensor.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .shard import Shard
from .source import Source


@dataclass(frozen=True)
class Logical:
    """One logical tensor and where it starts in the flattened local parameter."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def is_expert(parameter: torch.Tensor) -> bool:
    """Whether this parameter stacks experts that other ranks do not hold."""
    return hasattr(parameter, "first_expert")


def logical_tensors(name: str, parameter: torch.Tensor) -> list[Logical]:
    """The logical tensors inside the local parameter `name`, in memory order.

    `parameter` may be any object with the parameter's `shape` and marks.
    """
    shape = tuple(parameter.shape)
    if not is_expert(parameter):
        return [Logical(name, shape, 0)]
    module, _, leaf = name.rpartition(".")
    first: int = parameter.first_expert  # type: ignore[attr-defined]
    size = math.prod(shape[1:])
    return [Logical(f"{module}.{first + i}.{leaf}", shape[1:], i * size) for i in range(shape[0])]


def overlaps(logicals: list[Logical], start: int, numel: int) -> Iterator[tuple[Logical, int, int]]:
    """(logical, first, last) for each logical tensor that meets local elements
    [start, start + numel); first and last count inside the logical tensor."""
    for t in logicals:
        first, last = max(start - t.start, 0), min(start + numel - t.start, t.numel)
        if first < last:
            yield t, first, last


def to_shards(prefix: str, logicals: list[Logical], start: int, data: torch.Tensor) -> list[Shard]:
    """Name the local elements [start, start + len(data)) of one parameter; `data` is 1-D, and only
    the optimizer's update writes it."""
    shards = []
    for t, first, last in overlaps(logicals, start, data.numel()):
        at = t.start + first - start
        piece = data[at : at + last - first]
        shards.append(Shard(f"{prefix}/{t.name}", t.shape, first, piece, steady=True))
    return shards


def fill(
    reader: Source, prefix: str, logicals: list[Logical], start: int, data: torch.Tensor
) -> None:
    """Read into `data` (1-D) what `to_shards` would name; the inverse of it."""
    for t, first, last in overlaps(logicals, start, data.numel()):
        at = t.start + first - start
        data[at : at + last - first].copy_(reader.read(f"{prefix}/{t.name}", first, last - first))


def has_optimizer(reader: Source) -> bool:
    """Whether the checkpoint holds any optimizer state; imported weights come without."""
    return any(not name.startswith(("model/", "rng/")) for name in reader.tensors)


def buffer_shards(model: nn.Module) -> list[Shard]:
    """The model's buffers, equal on all ranks (rank 0 exports them)."""
    return [
        Shard(f"model/{name}", tuple(b.shape), 0, b.detach().reshape(-1))
        for name, b in model.named_buffers()
    ]


def fill_buffers(reader: Source, model: nn.Module) -> None:
    """Read every buffer of the model."""
    for name, buffer in model.named_buffers():
        buffer.copy_(reader.read(f"model/{name}").view_as(buffer))
