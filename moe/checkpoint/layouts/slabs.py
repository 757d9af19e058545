"""Parts of parts: elements of a slab, or of several laid end to end, are slabs again."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from ...state.source import Slab


def block(name: str, offset: int, run: int, rows: int, stride: int) -> Slab:
    """A slab in its one form: runs that touch are one run, and one run has stride 0."""
    if rows == 1 or run == stride:
        return Slab(name, offset, run * rows)
    return Slab(name, offset, run, rows, stride)


def part(slab: Slab, first: int, last: int) -> Iterator[Slab]:
    """Elements [first, last) of the slab, counted in its own order: at most a broken run, whole
    runs, and a broken run."""
    row, skipped = divmod(first, slab.run)
    end, rest = divmod(last, slab.run)

    def at(row: int) -> int:
        return slab.offset + row * slab.stride

    if row == end:
        yield Slab(slab.name, at(row) + skipped, last - first)
        return
    if skipped:
        yield Slab(slab.name, at(row) + skipped, slab.run - skipped)
        row += 1
    if row < end:
        yield block(slab.name, at(row), slab.run, end - row, slab.stride)
    if rest:
        yield Slab(slab.name, at(end), rest)


def cut(slabs: Sequence[Slab], starts: Sequence[int], start: int, numel: int) -> Iterator[Slab]:
    """Elements [start, start + numel) of `slabs` laid end to end; `starts` ascend and say where
    each one begins."""
    end = start + numel
    i = bisect_right(starts, start) - 1
    while i < len(slabs) and starts[i] < end:
        first, last = max(start - starts[i], 0), min(end - starts[i], slabs[i].numel)
        yield from part(slabs[i], first, last)
        i += 1
