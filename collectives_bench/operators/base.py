"""What an operator is: sizes and bandwidths as nccl-tests 2.19 defines them, buffers, call, check.

A size is that of the full buffer: what `all_gather` receives and `reduce_scatter` sends in all. In
operations that cut the buffer into a part for each rank, parts are multiples of 16 bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from ..codes import Codes, poison

DTYPES: Mapping[str, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
ALIGNMENT = 16
"""Bytes of which a rank's part is a multiple."""


@dataclass(frozen=True)
class GroupRank:
    """A rank in a communicator of global `ranks`, at `index`; None for the default `group`.

    `counts` [n, n] are the elements that rank i sends to rank j, for `all_to_all_v` only.
    """

    ranks: tuple[int, ...]
    index: int
    group: dist.ProcessGroup | None
    device: torch.device
    dtype: torch.dtype
    in_place: bool
    counts: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Ranks in the communicator."""
        return len(self.ranks)

    def empty(self, elements: int) -> torch.Tensor:
        """A new buffer."""
        return torch.empty(elements, dtype=self.dtype, device=self.device)


Part = tuple[torch.Tensor, int, int]
"""A view, the place in the group (or SUM) whose values belong there, from which position on."""


@dataclass(frozen=True)
class BoundOp:
    """`call` runs the operation once on `buffers`; `sent` is what this rank gives, as (view, place
    in the group), `expected` what it must find afterwards."""

    call: Callable[[], object]
    buffers: list[torch.Tensor] = field(default_factory=list)
    sent: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    expected: list[Part] = field(default_factory=list)

    def prepare(self, codes: Codes) -> None:
        """Write the values to send; everything else holds what no rank sends."""
        for buffer in self.buffers:
            poison(buffer)
        for view, row in self.sent:
            codes.fill(view, row)

    def wrong(self, codes: Codes) -> int:
        """Wrong elements after the call."""
        return sum(codes.wrong(*part) for part in self.expected)

    def clear(self) -> None:
        """Zeros, which repeated sums leave as they are."""
        for buffer in self.buffers:
            buffer.zero_()


Hops = Literal["tree", "ring", "flat"]
"""How latency grows with the ranks (`laws.LATENCY`)."""


@dataclass(frozen=True)
class Operator:
    """One collective: all that the sweep, the fits and the predictions know of it."""

    build: Callable[[GroupRank, int], BoundOp]
    """`build(member, count)`: a rank's share of it over `count` elements (of one part where
    `parted`)."""
    factor: Callable[[int], float]
    """Bus over algorithm bandwidth among n ranks."""
    elements: Callable[[int, int, bool], int]
    """`elements(n, count, in_place)`: those of a rank's buffers together."""
    parted: bool = False
    """Whether the buffer is cut into a part for each rank."""
    forms: tuple[bool, ...] = (False,)
    """The values of in_place that torch.distributed has."""
    hops: Hops | None = None
    """The law of its latency where one count of ranks was measured, which cannot say which holds;
    None: nothing is predicted from it."""
    symmetric: bool = False
    """Whether every rank waits for every other and does the same work."""
    sized: bool = True
    """Whether it moves bytes."""
    uneven: bool = False
    """Whether `loads` say how much goes from rank to rank."""
    least: int = 1
    """The fewest ranks that it makes sense among."""

    def count(self, size: int, n: int, width: int) -> int:
        """Elements of `width` bytes (of one part where parted) at `size` bytes."""
        count = size // width
        # nccl-tests: (count / nranks) & ~(16 / eltSize - 1)
        return (count // n) & ~(ALIGNMENT // width - 1) if self.parted else count

    def bytes(self, count: int, n: int, width: int) -> int:
        """The size that `count` stands for."""
        return count * width * (n if self.parted else 1)


def largest(counts: np.ndarray) -> int:
    """The elements of the rank that sends or receives most: the size of an all-to-all-v."""
    return int(max(counts.sum(axis=0).max(), counts.sum(axis=1).max()))


def holds(counts: np.ndarray) -> int:
    """The elements of both buffers of the rank whose are largest."""
    return int((counts.sum(axis=0) + counts.sum(axis=1)).max())
