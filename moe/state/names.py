"""Canonical names: the one view of the state that no layout changes.

Every expert is a logical tensor of its own with its global id, such as
`layers.3.ffn.experts.17.gate_up`; every other parameter is one logical tensor.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..spec import Spec
from .shard import Shard
from .source import Source


@dataclass(frozen=True)
class Local:
    """A parameter as one rank holds it: its canonical `name`, `shape` here, and what its layer says
    of it. Stacked experts count from the global id `first_expert`. `two_stages`: whether another
    pipeline stage holds it too."""

    name: str
    shape: tuple[int, ...]
    spec: Spec
    first_expert: int = 0
    two_stages: bool = False

    @property
    def numel(self) -> int:
        """Number of elements here."""
        return math.prod(self.shape)

    @property
    def expert(self) -> bool:
        """Whether it stacks experts that other ranks do not hold."""
        return self.spec.experts > 0

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) of each of the matrices in it."""
        return self.shape[-2] // self.spec.matrices, self.shape[-1]

    def logicals(self) -> list["Logical"]:
        """The logical tensors in it, in memory order; their shapes are those held here."""
        if not self.expert:
            return [Logical(self.name, self.shape, 0)]
        module, _, leaf = self.name.rpartition(".")
        shape = self.shape[1:]
        return [
            Logical(f"{module}.{self.first_expert + i}.{leaf}", shape, i * math.prod(shape))
            for i in range(self.shape[0])
        ]


Parameters = list[tuple[Local, nn.Parameter]]
"""A model's parameters with what is known of each, in the order of the model."""


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


def whole(name: str, spec: Spec) -> Local:
    """The parameter `name` with all its elements, as the only rank holds it."""
    stack = (spec.experts,) if spec.experts else ()
    return Local(name, (*stack, *spec.shape), spec)


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
    """The model's buffers, equal on all ranks (the grid's writer exports them)."""
    return [
        Shard(f"model/{name}", tuple(b.shape), 0, b.detach().reshape(-1))
        for name, b in model.named_buffers()
    ]


def fill_buffers(reader: Source, model: nn.Module) -> None:
    """Read every buffer of the model."""
    for name, buffer in model.named_buffers():
        buffer.copy_(reader.read(f"model/{name}").view_as(buffer))
