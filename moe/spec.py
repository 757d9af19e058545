"""What a layer says of each of its parameters; all that handles parameters follows from it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Init = Callable[[torch.Tensor, torch.Generator], None]
"""Fills a flat fp32 tensor, one logical tensor's elements, with its first values."""


@dataclass(frozen=True)
class Normal:
    """Values from N(0, std)."""

    std: float

    def __call__(self, values: torch.Tensor, generator: torch.Generator) -> None:
        values.normal_(0, self.std, generator=generator)


@dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def __call__(self, values: torch.Tensor, generator: torch.Generator) -> None:
        values.fill_(self.value)


@dataclass(frozen=True)
class CutPart:
    """The `ranges` along `axis` of a tensor of `shape` that one tensor-parallel rank holds.

    `writes`: whether this rank speaks for its copy where several hold the same elements.
    """

    shape: tuple[int, ...]
    axis: int
    ranges: tuple[range, ...]
    writes: bool

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of what the rank holds."""
        if not self.shape:
            return ()
        held = sum(map(len, self.ranges))
        return (*self.shape[: self.axis], held, *self.shape[self.axis + 1 :])

    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """(offset, run, rows, stride) of the held elements of the flattened tensor, in the order
        of the rank's memory: `rows` runs of `run` elements, `stride` apart."""
        inner = math.prod(self.shape[self.axis + 1 :])
        outer = math.prod(self.shape[: self.axis])
        stride = inner * (self.shape[self.axis] if self.shape else 1)
        held = [(r.start * inner, len(r) * inner) for r in self.ranges if len(r) * inner]
        if len(held) == 1:
            yield (*held[0], outer, stride)
            return
        for row in range(outer):
            for offset, run in held:
                yield row * stride + offset, run, 1, run


@dataclass(frozen=True)
class Cut:
    """How tensor parallelism shares a tensor: the ranks split `axis` evenly (None: all hold it).

    Each of `blocks` equal parts of the axis is split by itself (gate and up lie in one tensor).
    `units` of the axis cannot be split further (heads), and `field` of the config is their number;
    0 units: elements, of which the last ranks may get fewer. With `copies`, where there are fewer
    units than ranks, neighbours hold copies of one (KV heads; arXiv 1909.08053 has one a rank).
    """

    axis: int | None = None
    blocks: int = 1
    units: int = 0
    field: str = ""
    copies: bool = False

    def part(self, shape: tuple[int, ...], size: int, rank: int) -> CutPart:
        """What rank `rank` of `size` holds of a tensor of `shape`."""
        if self.axis is None or size == 1:
            whole = range(shape[0] if shape else 1)
            return CutPart(shape, 0, (whole,), size == 1 or rank == 0)
        copies = max(1, size // self.units) if self.copies else 1
        block = shape[self.axis] // self.blocks
        starts = (i * block for i in range(self.blocks))
        mine = tuple(_share(range(s, s + block), size // copies, rank // copies) for s in starts)
        return CutPart(shape, self.axis, mine, rank % copies == 0)

    def allows(self, size: int) -> bool:
        """Whether `size` ranks can share the units."""
        if self.axis is None or not self.units or self.units % size == 0:
            return True
        return self.copies and size % self.units == 0


def _share(whole: range, size: int, rank: int) -> range:
    step = -(-len(whole) // size)
    return whole[rank * step : (rank + 1) * step]


COPY = Cut()
"""Every rank holds the whole tensor."""


@dataclass(frozen=True)
class Spec:
    """One parameter, or buffer, of a layer.

    `shape`: of the whole tensor; of one expert's where `experts` of them are stacked along a first
    axis of their own, of which a token uses `used`. `update`: what Muon may take, `matrix` (the
    last two axes, of which `matrices` lie below one another in each), or `vector`, which always
    goes to AdamW. `buffer`: no gradient, always fp32, the same on all ranks that hold the layer.
    """

    shape: tuple[int, ...]
    init: Init
    update: Literal["matrix", "vector"] = "vector"
    decay: bool = False
    cut: Cut = COPY
    matrices: int = 1
    experts: int = 0
    used: int = 0
    experts_field: str = "moe.num_experts"
    buffer: bool = False

    @property
    def numel(self) -> int:
        """Elements of all experts."""
        return math.prod(self.shape) * max(self.experts, 1)

    @property
    def active(self) -> int:
        """Elements that one token uses."""
        return math.prod(self.shape) * (self.used if self.experts else 1)


def vector(size: int, value: float) -> Spec:
    """A norm's weight, a bias, a gate: `size` equal values, without decay, on every rank."""
    return Spec((size,), Constant(value))


def matrix(
    rows: int, columns: int, std: float, cut: Cut = COPY, matrices: int = 1, experts: int = 0
) -> Spec:
    """A projection [rows, columns] from N(0, std), with decay."""
    return Spec((rows, columns), Normal(std), "matrix", True, cut, matrices, experts)


Specs = dict[str, Spec]
"""By the name that the parameter has inside its layer."""


def under(prefix: str, specs: Specs) -> Specs:
    """The specs of a part of a layer, named from the layer."""
    return {f"{prefix}.{name}": spec for name, spec in specs.items()}
