"""Where the elements of a strided slab lie, and copies between a slab and the logical order.

A slab's own order is the logical one: its elements ascend. So any range of the logical tensor
meets a slab in one range of the slab's own elements.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

_WORDS: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("u2"),
    4: np.dtype("u4"),
    8: np.dtype("u8"),
}


class Strided(Protocol):
    """`rows` runs of `run` elements of a flattened tensor (see `source.Slab`)."""

    @property
    def offset(self) -> int:
        """The first element."""
        ...

    @property
    def run(self) -> int:
        """Consecutive elements of a row."""
        ...

    @property
    def rows(self) -> int:
        """Number of runs."""
        ...

    @property
    def stride(self) -> int:
        """From the start of a run to the next one's."""
        ...


class StridedBlock(NamedTuple):
    """Part of a slab: `rows` runs of `run` elements, from element `local` of the slab's own order
    and element `logical` of the tensor on."""

    local: int
    logical: int
    rows: int
    run: int


def below(slab: Strided, index: int) -> int:
    """How many of the slab's elements lie before element `index` of the tensor."""
    ahead = index - slab.offset
    if ahead <= 0:
        return 0
    if slab.rows == 1:
        return min(ahead, slab.run)
    row, column = divmod(ahead, slab.stride)
    return min(row * slab.run + min(column, slab.run), slab.rows * slab.run)


def blocks(slab: Strided, first: int, last: int) -> Iterator[StridedBlock]:
    """The slab's elements inside [first, last) of the tensor: at most three blocks."""
    begin, end = below(slab, first), below(slab, last)
    if begin >= end:
        return
    row, column = divmod(begin, slab.run)
    last_row, rest = divmod(end, slab.run)
    if row == last_row:
        yield StridedBlock(begin, slab.offset + row * slab.stride + column, 1, end - begin)
        return
    if column:
        yield StridedBlock(begin, slab.offset + row * slab.stride + column, 1, slab.run - column)
        row += 1
    if row < last_row:
        yield StridedBlock(
            row * slab.run, slab.offset + row * slab.stride, last_row - row, slab.run
        )
    if rest:
        yield StridedBlock(last_row * slab.run, slab.offset + last_row * slab.stride, 1, rest)


def words(data: torch.Tensor) -> np.ndarray:
    """A contiguous CPU tensor's elements as unsigned integers of their size; shares the memory."""
    return data.reshape(-1).view(torch.uint8).numpy().view(_WORDS[data.dtype.itemsize])


def word_type(itemsize: int) -> np.dtype[Any]:
    """The unsigned integer of `itemsize` bytes."""
    return _WORDS[itemsize]


def scatter(slab: Strided, first: int, chunk: np.ndarray, data: np.ndarray) -> None:
    """Put `data`, the slab's elements inside [first, first + len(chunk)), into `chunk`."""
    base = below(slab, first)
    for block in blocks(slab, first, first + len(chunk)):
        at = block.local - base
        _window(slab, first, chunk, block)[:] = _rows(data, at, block)


def gather(slab: Strided, first: int, chunk: np.ndarray, data: np.ndarray) -> None:
    """Fill `data` with the slab's elements inside [first, first + len(chunk)): undoes `scatter`."""
    base = below(slab, first)
    for block in blocks(slab, first, first + len(chunk)):
        at = block.local - base
        _rows(data, at, block)[:] = _window(slab, first, chunk, block)


def _rows(data: np.ndarray, at: int, block: StridedBlock) -> np.ndarray:
    return data[at : at + block.rows * block.run].reshape(block.rows, block.run)


def _window(slab: Strided, first: int, chunk: np.ndarray, block: StridedBlock) -> np.ndarray:
    size = chunk.itemsize
    return np.lib.stride_tricks.as_strided(
        chunk[block.logical - first :],
        (block.rows, block.run),
        (slab.stride * size, size),
    )
