"""Sizes and bandwidths, pinned to nccl-tests 2.19.6."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelstrom.collectives_bench.codes import Codes
from moelstrom.collectives_bench.ops import DTYPES, TABLE, Place, holds, largest

MIB = 2**20
# Without those whose buffers need a process group or a load.
FORMS = [
    (name, form)
    for name, op in TABLE.items()
    for form in op.forms
    if name not in ("send_recv", "all_to_all_v")
]
# operation: (size printed, elements printed, factor) of fp32 at 1 MiB over 6 ranks.
AT_1_MIB = {
    "all_reduce": (1048576, 262144, 10 / 6),
    "reduce_scatter": (1048512, 43688, 5 / 6),
    "all_gather": (1048512, 43688, 5 / 6),
    "broadcast": (1048576, 262144, 1),
    "reduce": (1048576, 262144, 1),
    "gather": (1048512, 43688, 5 / 6),
    "scatter": (1048512, 43688, 5 / 6),
    "all_to_all": (1048512, 43688, 5 / 6),
    "all_to_all_v": (1048512, 43688, 5 / 6),
    "send_recv": (1048576, 262144, 1),
}


@pytest.mark.parametrize("name", AT_1_MIB)
def test_size_count_and_bus_bandwidth(name: str) -> None:
    op, (size, count, factor) = TABLE[name], AT_1_MIB[name]
    assert op.count(MIB, 6, 4) == count
    assert op.bytes(count, 6, 4) == size
    assert op.factor(6) == pytest.approx(factor)


@pytest.mark.parametrize(("n", "factor"), [(1, 0.0), (2, 1.0), (8, 1.75)])
def test_all_reduce_moves_twice_the_ring(n: int, factor: float) -> None:
    assert TABLE["all_reduce"].factor(n) == factor


@given(st.sampled_from(list(TABLE)), st.integers(0, 2**33), st.integers(1, 64), st.data())
def test_parts_are_whole_multiples_of_16_bytes(
    name: str, size: int, n: int, data: st.DataObject
) -> None:
    op, width = TABLE[name], data.draw(st.sampled_from([1, 2, 4, 8]))
    count = op.count(size, n, width)
    lost = size - op.bytes(count, n, width)
    if op.parted:
        assert count * width % 16 == 0 and 0 <= lost < 16 * n + width * n
    else:
        assert 0 <= lost < width


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize(("name", "in_place"), FORMS)
def test_memory_is_what_the_buffers_take(name: str, index: int, in_place: bool) -> None:
    op = TABLE[name]
    place = Place((4, 5, 7), index, None, torch.device("cpu"), torch.float32, in_place)
    case = op.build(place, 8)
    held = {b.untyped_storage().data_ptr(): b.untyped_storage().nbytes() for b in case.buffers}
    bound = op.elements(3, 8, in_place) * 4
    assert sum(held.values()) <= bound
    if index == 0:
        assert sum(held.values()) == bound


def test_yesterdays_result_is_no_result() -> None:
    codes = Codes((0, 1), torch.float32, 0)
    place = Place((0, 1), 1, None, torch.device("cpu"), torch.float32, in_place=True)
    case = TABLE["broadcast"].build(place, 8)
    codes.fill(case.buffers[0], 0)
    assert case.wrong(codes) == 0
    case.prepare(codes)
    assert case.wrong(codes) == 8


def test_an_uneven_exchange_is_as_large_as_its_busiest_rank() -> None:
    counts = np.array([[0, 16, 48], [32, 0, 32], [0, 0, 0]])
    assert largest(counts) == 80
    assert holds(counts) == 64 + 32
    place = Place((0, 1, 2), 1, None, torch.device("cpu"), DTYPES["bf16"], False, counts)
    case = TABLE["all_to_all_v"].build(place, 32)
    assert [len(b) for b in case.buffers] == [64, 16]
    assert [(len(view), row, start) for view, row, start in case.expected] == [
        (16, 0, 0),
        (0, 1, 32),
        (0, 2, 0),
    ]
