"""Communication for the sizing adviser: data sheets' laws, and the measured predictor's figures."""

from dataclasses import replace

import pytest
from bench_reports import collective, collectives
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.collectives_bench.network import Group
from moelstrom.collectives_bench.schema import BenchReport
from moelstrom.kernels.targets import TARGETS, find
from moelstrom.launch.size.network import SheetNetwork, measured, of_data_sheet
from moelstrom.moe.config import EngineConfig, LayoutConfig, ModelConfig
from moelstrom.moe.sizing.counts import count_parameters

ENGINE = EngineConfig(precision="bf16")
MODEL = ModelConfig(vocab_size=4096)
OPS = ("reduce_scatter", "all_gather", "all_to_all", "all_to_all_v")


def bandwidth(target: str, op: str, size: int, local: int) -> float:
    """Bytes that leave a rank over the seconds of a huge collective."""
    whole = 1e12
    seconds = SheetNetwork(find(target)).seconds(op, whole, Group(size, local))
    return whole * (size - 1) / size / seconds


@pytest.mark.parametrize("op", OPS)
def test_xgmi_grows_with_the_ranks_and_a_switch_is_flat(op: str) -> None:
    xgmi = [bandwidth("gfx942", op, n, n) for n in (2, 4, 8)]
    assert xgmi == [pytest.approx(0.8 * 64e9 * (n - 1), rel=1e-3) for n in (2, 4, 8)]
    switch = [bandwidth("sm90", op, n, n) for n in (2, 4, 8)]
    assert switch == [pytest.approx(0.8 * 450e9, rel=1e-3)] * 3


def test_between_nodes_a_reduction_sends_shards_and_an_exchange_all() -> None:
    network, group = SheetNetwork(find("gfx942")), Group(16, 8)
    sent = 0.8 * 50e9
    assert network.seconds("reduce_scatter", 1e12, group) == pytest.approx(
        max(1e12 / 16 / sent, 7 / 8 * 1e12 / (0.8 * 64e9 * 7)), rel=1e-3
    )
    assert network.seconds("all_to_all", 1e12, group) == pytest.approx(0.5e12 / sent, rel=1e-3)


@settings(deadline=None)
@given(
    target=st.sampled_from(sorted(TARGETS)),
    op=st.sampled_from(OPS),
    size=st.floats(1, 1e12),
    local=st.sampled_from([1, 2, 4, 8]),
    nodes=st.integers(1, 64),
)
def test_more_bytes_and_more_nodes_never_take_less(
    target: str, op: str, size: float, local: int, nodes: int
) -> None:
    network = SheetNetwork(find(target))
    here = network.seconds(op, size, Group(local * nodes, local))
    assert here >= 0 and network.seconds(op, 2 * size, Group(local * nodes, local)) >= here
    more = network.seconds(op, size, Group(local * (nodes + 1), local))
    assert more >= here * (1 - 1e-9)
    assert network.seconds(op, size, Group(1, 1)) == 0


def test_a_steps_traffic_on_one_node() -> None:
    found = of_data_sheet(find("sm90"), 8, ENGINE)
    assert "data sheets of H100 SXM" in found.label and "nothing measured" in found.label
    alone = found.predict(MODEL, LayoutConfig(), 4096, 2, False)
    assert (alone.gradients, alone.weights, alone.tokens) == (0, 0, 0)
    plain = found.predict(MODEL, LayoutConfig(dp=8), 4096, 2, False)
    counts = count_parameters(MODEL)
    bytes_out = 7 / 8 * 4 * counts.total
    # The latency of each bucket's seven messages, beside the bytes.
    buckets = 7 * 5e-6 * 2
    assert plain.tokens == 0
    assert plain.gradients == pytest.approx(bytes_out / (0.8 * 450e9) + buckets, rel=0.2)
    assert plain.weights < plain.gradients < 2.1 * plain.weights
    split = found.predict(MODEL, LayoutConfig(dp=8, ep=8), 4096, 2, False)
    assert split.tokens > 0 and split.gradients < plain.gradients
    again = found.predict(MODEL, LayoutConfig(dp=8, ep=8), 4096, 2, True)
    assert again.tokens == pytest.approx(1.5 * split.tokens, rel=0.1)


def report() -> BenchReport:
    """Four ranks of one host at 20 us + bytes / 2 GB/s for all."""
    made = collectives()
    made.collectives = [
        replace(c := collective("all_reduce", 2**i), op=op, busbw=0.75 * c.algbw)
        for op in ("reduce_scatter", "all_gather", "all_to_all")
        for i in range(10, 25, 2)
    ]
    made.hosts = [replace(made.hosts[0], ranks=[0, 1, 2, 3], devices=4)]
    return made


def test_measured_fits_are_used() -> None:
    found = measured(report(), 4, ENGINE)
    assert found.label.startswith("measured with gloo on 4 ranks")
    traffic = found.predict(MODEL, LayoutConfig(dp=4), 4096, 1, False)
    counts = count_parameters(MODEL)
    assert traffic.gradients == pytest.approx(4 * counts.total / 2e9, rel=0.1)
    assert traffic.weights == pytest.approx(2 * counts.total / 2e9, rel=0.1)
    missing = report()
    missing.collectives = [c for c in missing.collectives if c.op != "all_to_all"]
    with pytest.raises(UserError, match="report: no fit of all_to_all"):
        measured(missing, 4, ENGINE).predict(MODEL, LayoutConfig(dp=4, ep=4), 4096, 1, False)
