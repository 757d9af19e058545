"""A step's collectives and their times: by hand, and the properties that any network gives."""

from dataclasses import replace
from itertools import pairwise

import network_reports as nr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.collectives_bench.fit import fit_report
from moelstrom.collectives_bench.network import Group, Network
from moelstrom.collectives_bench.predict import Call, RankLayout, StepVolume, calls, predict

NODE = 8
STEP = StepVolume(
    dense=1_000_000,
    experts=4_000_000,
    width=2,
    bucket_bytes=nr.MIB,
    moe_layers=12,
    num_experts=16,
    top_k=2,
    hidden=1024,
    tokens=4096,
    microbatches=4,
)
GRADIENTS = ("reduce_scatter", "all_gather", "all_reduce")


def network(
    hop: float = 5e-6, rate: float = 300e9, far: float = 2e-5, nic: float = 50e9
) -> Network:
    """Fits of one node and of rails over 4 nodes."""
    found = []
    for op in (*GRADIENTS, "all_to_all"):
        for n, group, a, b in ((8, "node", hop, rate), (4, "rail", far, nic)):
            ranks = range(n) if group == "node" else range(0, n * NODE, NODE)
            factor = nr.bus_factor(op, n) / b
            found += nr.sweep(op, ranks, lambda s, n=n, a=a, f=factor: a * (n - 1) + s * f, group)
    return Network(fit_report(nr.report(found, 4, 32)))


NETWORK = network()


def test_the_calls_of_a_step_on_one_node() -> None:
    # 3 full buckets of 262,144 elements and 213,568 left; experts: 15 and 67,840.
    dp, edp, ep = Group(8, 8), Group(4, 4, 2), Group(2, 2, 4)
    rows = 4096 * 2 * 1024 * 2
    assert calls(STEP, RankLayout(8, 2, 8)) == [
        Call("gradients", "reduce_scatter", nr.MIB, dp, 3),
        Call("weights", "all_gather", nr.MIB // 2, dp, 3),
        Call("gradients", "reduce_scatter", 4 * 213_568, dp, 1),
        Call("weights", "all_gather", 2 * 213_568, dp, 1),
        Call("gradients", "reduce_scatter", nr.MIB, edp, 15),
        Call("weights", "all_gather", nr.MIB // 2, edp, 15),
        Call("gradients", "reduce_scatter", 4 * 67_840, edp, 1),
        Call("weights", "all_gather", 2 * 67_840, edp, 1),
        Call("tokens", "all_to_all_v", rows, ep, 4 * 12 * 4),
        Call("tokens", "all_to_all", 128, ep, 12 * 4),
    ]


@pytest.mark.parametrize(
    ("layout", "dp", "ep", "edp"),
    [
        (RankLayout(32, 4, 8), Group(32, 8), Group(4, 4, 8), Group(8, 2, 4)),
        (RankLayout(32, 8, 8), Group(32, 8), Group(8, 8, 4), Group(4, 1, 8)),
        (RankLayout(32, 16, 8), Group(32, 8), Group(16, 8, 2), Group(2, 1, 16)),
        (RankLayout(4, 1, 8), Group(4, 4), Group(1, 1, 4), Group(4, 4, 1)),
    ],
)
def test_groups_lie_over_the_nodes_as_the_layout_puts_them(
    layout: RankLayout, dp: Group, ep: Group, edp: Group
) -> None:
    found = {call.group for call in calls(STEP, layout)}
    assert found == {g for g in (dp, ep, edp) if g.size > 1}


def test_the_total_adds_up_the_calls() -> None:
    layout = RankLayout(32, 8, 8)
    found = predict(NETWORK, STEP, layout)
    by_hand = sum(c.times * NETWORK.seconds(c.op, c.bytes, c.group) for c in calls(STEP, layout))
    assert found.total_s == pytest.approx(by_hand)
    assert all(seconds > 0 for seconds in found.parts.values())


def test_recomputation_sends_the_tokens_again() -> None:
    layout = RankLayout(8, 8, 8)
    plain, again = (predict(NETWORK, replace(STEP, recompute=r), layout) for r in (False, True))
    assert again.parts["tokens"] > 1.45 * plain.parts["tokens"]


def test_an_imbalanced_exchange_takes_as_long_as_its_busiest_rank() -> None:
    layout = RankLayout(8, 8, 8)
    even, skewed = (calls(replace(STEP, imbalance=i), layout)[-2] for i in (1.0, 1.5))
    assert (even.op, skewed.bytes) == ("all_to_all_v", 1.5 * even.bytes)


def test_without_zero_gradients_are_all_reduced_and_no_weights_gathered() -> None:
    found = predict(NETWORK, replace(STEP, sharded=False), RankLayout(8, 1, 8))
    assert found.parts["weights"] == 0
    assert found.parts["gradients"] > 0


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (RankLayout(12, 8, 4), "ep 8 does not divide dp 12"),
        (RankLayout(12, 4, 8), "per_node 8 does not divide dp 12"),
        (RankLayout(24, 12, 8), "ep 12 and per_node 8"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layout: RankLayout, message: str) -> None:
    with pytest.raises(UserError, match=message):
        calls(STEP, layout)


def test_ten_thousand_gpus() -> None:
    counts = [8, 64, 512, 4096, 10_000]
    found = [predict(NETWORK, STEP, RankLayout(dp, 8, NODE)) for dp in counts]
    totals = [p.total_s for p in found]
    assert totals == sorted(totals)
    # An expert-parallel degree that fills the node costs the same at every count.
    assert len({round(p.parts["tokens"], 9) for p in found}) == 1


costs = st.floats(1e-6, 1e-4)
rates = st.floats(1e9, 1e12)
counts = st.sampled_from([8, 16, 32, 64, 512, 10_000])
eps = st.sampled_from([1, 2, 4, 8])


@settings(deadline=None, max_examples=60)
@given(costs, rates, costs, rates, counts, eps, st.integers(1, 4))
def test_more_work_never_takes_less_time(
    hop: float, rate: float, far: float, nic: float, dp: int, ep: int, more: int
) -> None:
    net, layout = network(hop, rate, far, nic), RankLayout(dp, ep, NODE)
    base = predict(net, STEP, layout).total_s * (1 - 1e-9)
    for name in ("dense", "experts", "width", "moe_layers", "top_k", "hidden", "tokens"):
        larger = replace(STEP, **{name: getattr(STEP, name) * (1 + more)})
        assert predict(net, larger, layout).total_s >= base, name
    assert predict(net, replace(STEP, imbalance=1.0 + more), layout).total_s >= base
    # Smaller buckets pay latency more often, but never less.
    smaller = replace(STEP, bucket_bytes=STEP.bucket_bytes // (1 + more))
    assert predict(net, smaller, layout).total_s >= base


@settings(deadline=None, max_examples=60)
@given(costs, rates, costs, rates, eps)
def test_more_nodes_never_take_less_time(
    hop: float, rate: float, far: float, nic: float, ep: int
) -> None:
    net = network(hop, rate, far, nic)
    found = [predict(net, STEP, RankLayout(dp, ep, NODE)) for dp in (8, 16, 32, 64, 512, 10_000)]
    totals = [p.total_s for p in found]
    assert all(b >= a * (1 - 1e-6) for a, b in pairwise(totals))


@settings(deadline=None, max_examples=60)
@given(costs, rates, costs, rates, counts, eps)
def test_a_faster_network_never_takes_longer(
    hop: float, rate: float, far: float, nic: float, dp: int, ep: int
) -> None:
    slow = predict(network(hop, rate, far, nic), STEP, RankLayout(dp, ep, NODE))
    fast = predict(network(hop / 2, rate * 2, far / 2, nic * 2), STEP, RankLayout(dp, ep, NODE))
    assert fast.total_s == pytest.approx(slow.total_s / 2, rel=1e-3)
