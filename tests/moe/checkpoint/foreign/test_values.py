"""Any range of a tensor that boxes hold together."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelstrom.moe.checkpoint.foreign import values
from moelstrom.moe.checkpoint.foreign.values import Chunk, Chunks, box_slabs, check_boxes


@dataclass(frozen=True)
class Held:
    """Values in memory."""

    data: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def read_into(self, out: torch.Tensor, start: int) -> None:
        out.copy_(self.data.reshape(-1)[start : start + out.numel()])


@st.composite
def grids(draw: st.DrawFn) -> list[list[int]]:
    """The sizes that each axis is cut into."""
    axes = draw(st.integers(1, 4))
    sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
    return [draw(sizes) for _ in range(axes)]


def split(grid: list[list[int]]) -> tuple[torch.Tensor, list[Chunk]]:
    shape = [sum(sizes) for sizes in grid]
    value = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    chunks = []
    for index in itertools.product(*(range(len(sizes)) for sizes in grid)):
        offsets = tuple(sum(sizes[:i]) for i, sizes in zip(index, grid, strict=True))
        box = value
        for axis, (i, sizes) in enumerate(zip(index, grid, strict=True)):
            box = box.narrow(axis, offsets[axis], sizes[i])
        chunks.append(Chunk(offsets, Held(box)))
    return value, chunks


@given(grids(), st.data())
def test_any_range_of_any_grid(grid: list[list[int]], data: st.DataObject) -> None:
    value, chunks = split(grid)
    start = data.draw(st.integers(0, value.numel() - 1))
    end = data.draw(st.integers(start + 1, value.numel()))
    out = torch.full((end - start,), -1.0)
    Chunks(value.dtype, tuple(value.shape), chunks).read_into(out, start)
    assert torch.equal(out, value.view(-1)[start:end])


@given(grids())
def test_slabs_of_a_grid_hold_every_element_once(grid: list[list[int]]) -> None:
    value, chunks = split(grid)
    found = torch.zeros(value.numel(), dtype=torch.int64)
    for chunk in chunks:
        for slab in box_slabs(tuple(value.shape), chunk.offsets, chunk.values.shape):
            for row in range(slab.rows):
                first = slab.offset + row * slab.stride
                found[first : first + slab.run] += 1
    assert (found == 1).all()


Boxes = list[tuple[tuple[int, ...], tuple[int, ...]]]


def rows(count: int) -> Boxes:
    """A [count, 2] tensor in its rows, those cut in two."""
    return [((i, j), (1, 1)) for i in range(count) for j in range(2)]


def test_many_pieces_are_a_tensor_and_too_many_are_no_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of one column all meet on the other axis: each pair is looked at there."""
    check_boxes("w", (500, 2), rows(500))
    across: Boxes = [((0, i), (3, 1)) for i in range(3000)]
    check_boxes("w", (3, 3000), across)
    monkeypatch.setattr(values, "MAX_PAIRS", 3)
    check_boxes("w", (3, 2), rows(3))
    monkeypatch.setattr(values, "MAX_PAIRS", 2)
    with pytest.raises(ValueError, match="more pieces than any save"):
        check_boxes("w", (3, 2), rows(3))


BAD = {
    "lies outside it": [((0, 0), (2, 2)), ((2, 0), (2, 2))],
    "have 4 of its 6 elements": [((0, 0), (2, 2))],
    "have 8 of its 6 elements": [((0, 0), (3, 2)), ((0, 0), (1, 2))],
    "are there twice": [((0, 0), (2, 2)), ((1, 0), (1, 2))],
}


@pytest.mark.parametrize("words", BAD)
def test_boxes_hold_every_element_once(words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_boxes("w", (3, 2), BAD[words])  # type: ignore[arg-type]
    check_boxes("w", (3, 2), [((0, 0), (2, 2)), ((2, 0), (1, 2)), ((1, 1), (0, 1))])
    check_boxes("scalar", (), [((), ())])
