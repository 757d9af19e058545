"""Where the elements of a foreign tensor lie, and how any range of them is read."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from ...state.source import Slab


class Values(Protocol):
    """A flattened tensor, somewhere."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of its elements."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def read_into(self, out: torch.Tensor, start: int) -> None:
        """Fill `out` (1-D, contiguous, of `dtype`) from element `start` on."""
        ...


@dataclass(frozen=True)
class Zeros:
    """A tensor that the other library leaves out because it is zero."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def read_into(self, out: torch.Tensor, start: int) -> None:
        """Fill `out` with zeros."""
        out.zero_()


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor: where it begins, its sizes, and its own flattened values."""

    offsets: tuple[int, ...]
    values: Values


class Chunks:
    """A tensor of `shape` that boxes hold together, each element once."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], chunks: list[Chunk]) -> None:
        self.dtype, self.shape, self._chunks = dtype, shape, chunks

    @cached_property
    def _slabs(self) -> list[tuple[Slab, int, Values]]:
        """Each slab of the flattened tensor, and where it begins in the values of its box."""
        found: list[tuple[Slab, int, Values]] = []
        for chunk in self._chunks:
            at = 0
            for slab in box_slabs(self.shape, chunk.offsets, chunk.values.shape):
                found.append((slab, at, chunk.values))
                at += slab.numel
        return sorted(found, key=lambda item: item[0].offset)

    def read_into(self, out: torch.Tensor, start: int) -> None:
        """Fill `out` from element `start` of the flattened tensor on."""
        end = start + out.numel()
        for slab, at, values in self._slabs:
            if slab.offset < end and start < slab.end:
                _read_slab(out, start, slab, at, values)


Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a box begins, and its sizes."""
MAX_PAIRS = 10**7


def check_boxes(name: str, shape: tuple[int, ...], boxes: list[Box]) -> None:
    """Raise ValueError unless the boxes hold each element of the tensor `name` once.

    They are compared in the order of the axis that most of them share out, each with those that it
    meets there: with all of one cut a few.
    """
    for offsets, sizes in boxes:
        if not len(offsets) == len(sizes) == len(shape) or any(
            o + s > n for o, s, n in zip(offsets, sizes, shape, strict=True)
        ):
            raise ValueError(f"a piece of {name} lies outside it")
    filled = [box for box in boxes if math.prod(box[1])]
    held, whole = sum(math.prod(sizes) for _, sizes in filled), math.prod(shape)
    if held != whole:
        raise ValueError(f"the pieces of {name} have {held} of its {whole} elements")
    if shape and _meet(
        filled, max(range(len(shape)), key=lambda i: len({o[i] for o, _ in filled}))
    ):
        raise ValueError(f"elements of {name} are there twice")


def _meet(boxes: list[Box], axis: int) -> bool:
    """Whether any two share an element."""
    open_boxes: list[Box] = []
    pairs = 0
    for box in sorted(boxes, key=lambda box: box[0][axis]):
        open_boxes = [b for b in open_boxes if b[0][axis] + b[1][axis] > box[0][axis]]
        pairs += len(open_boxes)
        if pairs > MAX_PAIRS:
            raise ValueError("it has more pieces than any save")
        if any(_overlap(box, other) for other in open_boxes):
            return True
        open_boxes.append(box)
    return False


def _overlap(one: Box, other: Box) -> bool:
    sides = zip(*one, *other, strict=True)
    return all(a < b + n and b < a + m for a, m, b, n in sides)


def box_slabs(
    shape: tuple[int, ...], offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> Iterator[Slab]:
    """The slabs of the flattened tensor of `shape` that a box holds, in the box's order."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    split = len(shape)
    while split and sizes[split - 1] == shape[split - 1]:
        split -= 1
    if split == 0 or math.prod(sizes) == 0:
        if math.prod(sizes):
            yield Slab("", 0, math.prod(shape))
        return
    run = math.prod(sizes[split - 1 :])
    first = sum(o * s for o, s in zip(offsets, strides, strict=True))
    rows, stride = (sizes[split - 2], strides[split - 2]) if split > 1 else (1, 0)
    outer = [range(n) for n in sizes[: max(split - 2, 0)]]
    for index in itertools.product(*outer):
        offset = first + sum(i * s for i, s in zip(index, strides, strict=False))
        yield Slab("", offset, run, rows, stride if rows > 1 else 0)


def _read_slab(out: torch.Tensor, start: int, slab: Slab, at: int, values: Values) -> None:
    """Copy what `slab` has of the elements from `start` on that `out` wants."""
    end, stride = start + out.numel(), max(slab.stride, 1)
    first = max((start - slab.offset) // stride, 0) if slab.rows > 1 else 0
    last = min((end - slab.offset - 1) // stride, slab.rows - 1) if slab.rows > 1 else 0
    for row in {first, last}:
        begin = slab.offset + row * slab.stride
        low, high = max(start, begin), min(end, begin + slab.run)
        if low < high:
            values.read_into(out[low - start : high - start], at + row * slab.run + low - begin)
    whole = last - first - 1
    if whole > 0:
        rows = torch.empty(whole, slab.run, dtype=out.dtype)
        values.read_into(rows.view(-1), at + (first + 1) * slab.run)
        to = slab.offset + (first + 1) * slab.stride - start
        out[to:].as_strided((whole, slab.run), (slab.stride, 1)).copy_(rows)
