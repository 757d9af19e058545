"""The operations: sizes and bandwidths as nccl-tests 2.19 defines them, buffers, call, check.

A size is that of the full buffer: what `all_gather` receives and `reduce_scatter` sends in all. In
operations that cut the buffer into a part for each rank, parts are multiples of 16 bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from .codes import SUM, Codes, poison

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

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
class Place:
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
class Case:
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


@dataclass(frozen=True)
class Op:
    """`build(place, count)` makes a rank's case of `count` elements (of one part where `parted`).

    `factor(n)` is bus over algorithm bandwidth, `forms` the values of in_place that
    torch.distributed has, `elements(n, count, in_place)` the size of a rank's buffers.
    """

    build: Callable[[Place, int], Case]
    factor: Callable[[int], float]
    parted: bool
    forms: tuple[bool, ...]
    elements: Callable[[int, int, bool], int]

    def count(self, size: int, n: int, width: int) -> int:
        """Elements of `width` bytes (of one part where parted) at `size` bytes."""
        count = size // width
        # nccl-tests: (count / nranks) & ~(16 / eltSize - 1)
        return (count // n) & ~(ALIGNMENT // width - 1) if self.parted else count

    def bytes(self, count: int, n: int, width: int) -> int:
        """The size that `count` stands for."""
        return count * width * (n if self.parted else 1)


def _all_reduce(p: Place, count: int) -> Case:
    x = p.empty(count)
    call = partial(dist.all_reduce, x, group=p.group)
    return Case(call, [x], [(x, p.index)], [(x, SUM, 0)])


def _reduce_scatter_case(p: Place, count: int) -> Case:
    sent = p.empty(count * p.n)
    got = sent.split(count)[p.index] if p.in_place else p.empty(count)
    call = partial(_reduce_scatter, got, sent, group=p.group)
    return Case(call, [sent, got], [(sent, p.index)], [(got, SUM, p.index * count)])


def _all_gather_case(p: Place, count: int) -> Case:
    got = p.empty(count * p.n)
    parts = got.split(count)
    sent = parts[p.index] if p.in_place else p.empty(count)
    call = partial(_all_gather, got, sent, group=p.group)
    return Case(call, [got, sent], [(sent, p.index)], [(x, j, 0) for j, x in enumerate(parts)])


def _broadcast(p: Place, count: int) -> Case:
    x = p.empty(count)
    call = partial(dist.broadcast, x, p.ranks[0], group=p.group)
    return Case(call, [x], [(x, 0)] if p.index == 0 else [], [(x, 0, 0)])


def _reduce(p: Place, count: int) -> Case:
    x = p.empty(count)
    call = partial(dist.reduce, x, p.ranks[0], group=p.group)
    return Case(call, [x], [(x, p.index)], [(x, SUM, 0)] if p.index == 0 else [])


def _gather(p: Place, count: int) -> Case:
    if p.index:
        sent = p.empty(count)
        call = partial(dist.gather, sent, None, p.ranks[0], group=p.group)
        return Case(call, [sent], [(sent, p.index)])
    got = p.empty(count * p.n)
    parts = list(got.split(count))
    sent = parts[0] if p.in_place else p.empty(count)
    call = partial(dist.gather, sent, parts, p.ranks[0], group=p.group)
    return Case(call, [got, sent], [(sent, 0)], [(x, j, 0) for j, x in enumerate(parts)])


def _scatter(p: Place, count: int) -> Case:
    if p.index:
        got = p.empty(count)
        call = partial(dist.scatter, got, None, p.ranks[0], group=p.group)
        return Case(call, [got], [], [(got, 0, p.index * count)])
    sent = p.empty(count * p.n)
    parts = list(sent.split(count))
    got = parts[0] if p.in_place else p.empty(count)
    call = partial(dist.scatter, got, parts, p.ranks[0], group=p.group)
    return Case(call, [sent, got], [(sent, 0)], [(got, 0, 0)])


def _all_to_all(p: Place, count: int) -> Case:
    sent, got = p.empty(count * p.n), p.empty(count * p.n)
    call = partial(dist.all_to_all_single, got, sent, group=p.group)
    expected = [(x, j, p.index * count) for j, x in enumerate(got.split(count))]
    return Case(call, [sent, got], [(sent, p.index)], expected)


def _all_to_all_v(p: Place, count: int) -> Case:
    assert p.counts is not None
    out, into = p.counts[p.index].tolist(), p.counts[:, p.index].tolist()
    sent, got = p.empty(sum(out)), p.empty(sum(into))
    starts = p.counts[:, : p.index].sum(axis=1).tolist()
    call = partial(dist.all_to_all_single, got, sent, into, out, group=p.group)
    expected = list(zip(got.split(into), range(p.n), starts, strict=True))
    return Case(call, [sent, got], [(sent, p.index)], expected)


def _send_recv(p: Place, count: int) -> Case:
    """To the next rank of the ring, from the one before."""
    sent, got = p.empty(count), p.empty(count)
    before = (p.index - 1) % p.n
    pair = [
        dist.P2POp(dist.isend, sent, p.ranks[(p.index + 1) % p.n], p.group),
        dist.P2POp(dist.irecv, got, p.ranks[before], p.group),
    ]

    def call() -> None:
        for work in dist.batch_isend_irecv(pair):
            work.wait()

    return Case(call, [sent, got], [(sent, p.index)], [(got, before, 0)])


def _barrier(p: Place, count: int) -> Case:
    return Case(partial(dist.barrier, group=p.group))


def _ring(n: int) -> float:
    return (n - 1) / n


def _one(n: int) -> float:
    return 1.0


def _whole(n: int, count: int, in_place: bool) -> int:
    return count


def _both(n: int, count: int, in_place: bool) -> int:
    return 2 * count


def _parts(n: int, count: int, in_place: bool) -> int:
    return n * count + (0 if in_place else count)


def _exchange(n: int, count: int, in_place: bool) -> int:
    return 2 * n * count


def _nothing(n: int, count: int, in_place: bool) -> int:
    return 0


_IN, _OUT, _BOTH = (True,), (False,), (False, True)

TABLE: Mapping[str, Op] = {
    "all_reduce": Op(_all_reduce, lambda n: 2 * (n - 1) / n, False, _IN, _whole),
    "reduce_scatter": Op(_reduce_scatter_case, _ring, True, _BOTH, _parts),
    "all_gather": Op(_all_gather_case, _ring, True, _BOTH, _parts),
    "broadcast": Op(_broadcast, _one, False, _IN, _whole),
    "reduce": Op(_reduce, _one, False, _IN, _whole),
    "gather": Op(_gather, _ring, True, _BOTH, _parts),
    "scatter": Op(_scatter, _ring, True, _BOTH, _parts),
    "all_to_all": Op(_all_to_all, _ring, True, _OUT, _exchange),
    "all_to_all_v": Op(_all_to_all_v, _ring, True, _OUT, _exchange),
    "send_recv": Op(_send_recv, _one, False, _OUT, _both),
    "barrier": Op(_barrier, _one, False, _OUT, _nothing),
}


def largest(counts: np.ndarray) -> int:
    """The elements of the rank that sends or receives most: the size of an all-to-all-v."""
    return int(max(counts.sum(axis=0).max(), counts.sum(axis=1).max()))


def holds(counts: np.ndarray) -> int:
    """The elements of both buffers of the rank whose are largest."""
    return int((counts.sum(axis=0) + counts.sum(axis=1)).max())
