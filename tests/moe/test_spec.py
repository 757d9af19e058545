"""Cuts of tensors of any shape: every element once, in the order that slicing gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.moe.spec import COPY, Cut


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Cut, tuple[int, ...], int]:
    """A cut, a shape that it fits, and a number of ranks that can share it."""
    shape = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(1, 4)))]
    axis, blocks = draw(st.integers(0, len(shape) - 1)), draw(st.integers(1, 3))
    units, width, copies = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.booleans())
    shape[axis] = blocks * units * width
    cut = Cut(axis, blocks, units, "n", copies)
    sizes = [n for n in range(1, 13) if cut.allows(n)]
    return cut, tuple(shape), draw(st.sampled_from(sizes))


def held(cut: Cut, array: np.ndarray, size: int, rank: int) -> np.ndarray:
    """The rank's elements, gathered by the runs of its part."""
    part, flat = cut.part(array.shape, size, rank), array.reshape(-1)
    runs = [
        flat[offset + i * stride :][:run]
        for offset, run, rows, stride in part.runs()
        for i in range(rows)
    ]
    return np.concatenate([*runs, flat[:0]]).reshape(part.local_shape)


@settings(deadline=None, max_examples=300)
@given(cuts())
def test_parts_are_slices_and_writers_hold_all_once(
    drawn: tuple[Cut, tuple[int, ...], int],
) -> None:
    cut, shape, size = drawn
    axis = cut.axis or 0
    array = np.arange(np.prod(shape)).reshape(shape)
    groups = max(1, size // (size // cut.units)) if cut.copies and size > cut.units else size
    written = []
    for rank in range(size):
        blocks = np.split(array, cut.blocks, axis=axis)
        mine = [np.split(b, groups, axis=axis)[rank * groups // size] for b in blocks]
        found = held(cut, array, size, rank)
        assert np.array_equal(found, np.concatenate(mine, axis=axis))
        written += found.reshape(-1).tolist() if cut.part(shape, size, rank).writes else []
    assert sorted(written) == list(range(array.size))


def test_a_convolution_keeps_its_dimensions() -> None:
    """[32, 1, 4] lost elements when cuts knew matrices only."""
    array = np.arange(128).reshape(32, 1, 4)
    for size in (1, 2, 4):
        parts = [held(Cut(0, units=8), array, size, rank) for rank in range(size)]
        assert parts[0].shape == (32 // size, 1, 4)
        assert np.array_equal(np.concatenate(parts), array)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_a_copy_is_whole_and_the_first_writes_it(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    for rank in range(3):
        assert np.array_equal(held(COPY, array, 3, rank), array)
        assert COPY.part(shape, 3, rank).writes is (rank == 0)


def test_uneven_elements_go_to_the_first_ranks() -> None:
    parts = [held(Cut(0), np.arange(5), 4, rank).tolist() for rank in range(4)]
    assert parts == [[0, 1], [2, 3], [4], []]
