"""What is known of an engine without importing its library."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..config import EngineConfig, OptimizerConfig
from ..grid import Grid, Shape
from ..optim.rules import rule
from ..state.names import Local
from .base import Engine
from .options import EngineOptions


@dataclass(frozen=True)
class Run:
    """Elements [start, start + numel) of a flattened parameter, the `index`th of those shared."""

    index: int
    start: int
    numel: int


class EngineKind:
    """One engine: what it cannot do, how it shares state over ranks, and how to make it."""

    name: ClassVar[str]
    trains: ClassVar[bool] = True
    """Whether it runs training steps here; else only its checkpoints are read and written."""
    reduces_apart: ClassVar[bool] = False
    """Whether ZeRO reduces gradients into a shard beside the buffer that they fill."""
    merges_experts: ClassVar[bool] = False
    """Whether experts that no rank shares out are parameters like all others to its ZeRO."""

    @classmethod
    def problems(
        cls,
        shape: Shape,
        zero: int,
        optimizer: OptimizerConfig | None = None,
        engine: EngineConfig | None = None,
    ) -> Iterator[str]:
        """What it cannot hold, beginning with the layout's field; with `engine` also what it cannot
        train, else only what its saved state cannot be."""
        raise NotImplementedError

    @classmethod
    def share(
        cls,
        held: Sequence[Local],
        members: int,
        zero: int,
        bucket_bytes: int,
        optimizer: OptimizerConfig,
    ) -> Iterator[tuple[int, Run]]:
        """(owner, run) of the master weights and optimizer state of `held`, the parameters that
        `members` ranks have in common, in the order of the model. Only asked where ZeRO shares."""
        raise NotImplementedError

    @classmethod
    def updates_in_place(cls, zero: int, precision: str) -> bool:
        """Whether the weights of the forward pass are the fp32 master weights."""
        return False

    @classmethod
    def make(cls, options: EngineOptions, grid: Grid) -> Engine:
        """The engine itself; imports its library."""
        raise NotImplementedError


def untrained(shape: Shape) -> Iterator[str]:
    """Why data and expert parallelism alone do not make this shape."""
    for name in ("tp", "pp", "cp"):
        degree = getattr(shape, name)
        if degree != 1:
            yield f"{name} is {degree}: no engine runs it yet, set {name}: 1"


def kinds(held: Sequence[Local], optimizer: OptimizerConfig) -> dict[tuple[str, bool], list[int]]:
    """Indexes of the parameters by (update rule, weight decay), in order."""
    found: dict[tuple[str, bool], list[int]] = {}
    for i, local in enumerate(held):
        key = rule(local.spec, optimizer), local.spec.decay
        found.setdefault(key, []).append(i)
    return found


def end_to_end(numels: Sequence[int], alignment: int) -> tuple[list[int], int]:
    """Where each parameter starts in a flat buffer, and the buffer's size."""
    starts, end = [], 0
    for numel in numels:
        start = up(end, alignment)
        starts.append(start)
        end = start + numel
    return starts, end


def even(
    indexes: Sequence[int], numels: Sequence[int], starts: Sequence[int], size: int
) -> Iterator[tuple[int, Run]]:
    """Cut a flat buffer into shards of `size` elements: (owner, run) of each part."""
    for index, numel, position in zip(indexes, numels, starts, strict=True):
        start = 0
        while start < numel:
            owner, inside = divmod(position + start, size)
            taken = min(numel - start, size - inside)
            yield owner, Run(index, start, taken)
            start += taken


def up(number: int, multiple: int) -> int:
    """The next multiple from `number` on."""
    return -(-number // multiple) * multiple
