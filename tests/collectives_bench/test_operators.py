"""Sizes and bandwidths, pinned to nccl-tests 2.19.6."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moelstrom.collectives_bench.codes import Codes
from moelstrom.collectives_bench.config import CollectivesConfig
from moelstrom.collectives_bench.fit import Fit
from moelstrom.collectives_bench.network import Group, Network
from moelstrom.collectives_bench.operators import OPERATORS
from moelstrom.collectives_bench.operators.base import DTYPES, GroupRank, holds, largest
from moelstrom.collectives_bench.plan import SweepPlan
from moelstrom.collectives_bench.schema import Host

MIB = 2**20
# Without those whose buffers need a process group or a load.
FORMS = [
    (name, form)
    for name in OPERATORS
    for form in OPERATORS[name].forms
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
    op, (size, count, factor) = OPERATORS[name], AT_1_MIB[name]
    assert op.count(MIB, 6, 4) == count
    assert op.bytes(count, 6, 4) == size
    assert op.factor(6) == pytest.approx(factor)


@pytest.mark.parametrize(("n", "factor"), [(1, 0.0), (2, 1.0), (8, 1.75)])
def test_all_reduce_moves_twice_the_ring(n: int, factor: float) -> None:
    assert OPERATORS["all_reduce"].factor(n) == factor


@given(st.sampled_from(list(OPERATORS)), st.integers(0, 2**33), st.integers(1, 64), st.data())
def test_parts_are_whole_multiples_of_16_bytes(
    name: str, size: int, n: int, data: st.DataObject
) -> None:
    op, width = OPERATORS[name], data.draw(st.sampled_from([1, 2, 4, 8]))
    count = op.count(size, n, width)
    lost = size - op.bytes(count, n, width)
    if op.parted:
        assert count * width % 16 == 0 and 0 <= lost < 16 * n + width * n
    else:
        assert 0 <= lost < width


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize(("name", "in_place"), FORMS)
def test_memory_is_what_the_buffers_take(name: str, index: int, in_place: bool) -> None:
    op = OPERATORS[name]
    member = GroupRank((4, 5, 7), index, None, torch.device("cpu"), torch.float32, in_place)
    bound_op = op.build(member, 8)
    held = {b.untyped_storage().data_ptr(): b.untyped_storage().nbytes() for b in bound_op.buffers}
    bound = op.elements(3, 8, in_place) * 4
    assert sum(held.values()) <= bound
    if index == 0:
        assert sum(held.values()) == bound


def test_yesterdays_result_is_no_result() -> None:
    codes = Codes((0, 1), torch.float32, 0)
    member = GroupRank((0, 1), 1, None, torch.device("cpu"), torch.float32, in_place=True)
    bound_op = OPERATORS["broadcast"].build(member, 8)
    codes.fill(bound_op.buffers[0], 0)
    assert bound_op.wrong(codes) == 0
    bound_op.prepare(codes)
    assert bound_op.wrong(codes) == 8


def test_an_uneven_exchange_is_as_large_as_its_busiest_rank() -> None:
    counts = np.array([[0, 16, 48], [32, 0, 32], [0, 0, 0]])
    assert largest(counts) == 80
    assert holds(counts) == 64 + 32
    member = GroupRank((0, 1, 2), 1, None, torch.device("cpu"), DTYPES["bf16"], False, counts)
    bound_op = OPERATORS["all_to_all_v"].build(member, 32)
    assert [len(b) for b in bound_op.buffers] == [64, 16]
    assert [(len(view), row, start) for view, row, start in bound_op.expected] == [
        (16, 0, 0),
        (0, 1, 32),
        (0, 2, 0),
    ]


def test_another_package_adds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point: measured, predicted from and named with ours."""
    ring = replace(OPERATORS["all_reduce"], hops="flat", factor=lambda n: 3.0)
    point = SimpleNamespace(name="my_reduce", load=lambda: ring)
    monkeypatch.setattr(OPERATORS, "_added", {"my_reduce": point})
    assert [*OPERATORS][-1] == "my_reduce"
    config = CollectivesConfig(ops=("my_reduce",), max_bytes=1024, inject="0:my_reduce:1")
    found = SweepPlan(config, [Host("a", [0, 1], "a CPU", 2)], torch.device("cpu"), {})
    assert [(p.op, p.in_place, p.count(2)) for p in found.points] == [("my_reduce", True, 256)]
    fit = Fit(
        "my_reduce",
        "fp32",
        True,
        "world",
        2,
        2,
        1,
        None,
        3.0,
        1e-5,
        1e9,
        0.0,
        0.0,
        ((1024, 1.1024e-5),),
    )
    network = Network([fit])
    assert network.seconds("my_reduce", 1024, Group(2, 2)) == pytest.approx(1.1024e-5)
    with pytest.raises(ValidationError, match=r"'none': give some of all_reduce, .*, my_reduce"):
        CollectivesConfig(ops=("none",))
