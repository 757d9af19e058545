"""Parts of slabs, against parts of index arrays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moelstrom.moe.checkpoint.layouts.slabs import block, cut, part
from moelstrom.moe.state.source import Slab

SIZE = st.integers(1, 6)


@st.composite
def slabs(draw: st.DrawFn) -> Slab:
    run = draw(SIZE)
    return block("t", draw(st.integers(0, 9)), run, draw(SIZE), run + draw(st.integers(0, 3)))


def indices(slab: Slab) -> list[int]:
    rows = slab.offset + slab.stride * np.arange(slab.rows)
    return (rows[:, None] + np.arange(slab.run)).reshape(-1).tolist()


@given(slabs(), st.data())
def test_part(slab: Slab, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, slab.numel - 1))
    last = data.draw(st.integers(first + 1, slab.numel))
    found = list(part(slab, first, last))
    assert [i for s in found for i in indices(s)] == indices(slab)[first:last]
    assert len(found) <= 3
    assert all((s.rows == 1 and s.stride == 0) or s.stride > s.run for s in found)


@given(st.lists(slabs(), min_size=1, max_size=4), st.data())
def test_cut(several: list[Slab], data: st.DataObject) -> None:
    everything = [i for slab in several for i in indices(slab)]
    starts = [sum(slab.numel for slab in several[:i]) for i in range(len(several))]
    first = data.draw(st.integers(0, len(everything) - 1))
    last = data.draw(st.integers(first + 1, len(everything)))
    found = list(cut(several, starts, first, last - first))
    assert [i for s in found for i in indices(s)] == everything[first:last]
