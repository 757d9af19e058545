"""Random exact covers of a tensor by strided slabs."""

from itertools import pairwise

from hypothesis import strategies as st

from moelstrom.moe.state.source import Slab


def slab(offset: int, run: int, rows: int = 1, stride: int = 0) -> Slab:
    return Slab("w", offset, run, rows, stride)


@st.composite
def covers(draw: st.DrawFn) -> tuple[list[Slab], int]:
    """Column shards, each cut into ranges of its own elements, as ZeRO inside tensor parallel."""
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    cuts = sorted(draw(st.sets(st.integers(1, width), max_size=3)) | {0, width})
    slabs = []
    for left, right in pairwise(cuts):
        run = right - left
        ends = sorted(draw(st.sets(st.integers(0, run * height), max_size=3)) | {0, run * height})
        for first, last in pairwise(ends):
            slabs += flat_cut(left, run, width, first, last)
    return draw(st.permutations(slabs)), width * height


def flat_cut(left: int, run: int, width: int, first: int, last: int) -> list[Slab]:
    """Elements [first, last) of a column shard's own order: runs, the whole ones together."""
    found: list[Slab] = []
    while first < last:
        row, column = divmod(first, run)
        rows = max((last - first) // run, 1) if column == 0 else 1
        size = min(run - column, last - first)
        rows = rows if size == run else 1
        found.append(slab(row * width + left + column, size, rows, width if rows > 1 else 0))
        first += size * rows
    return found
