"""Nodes whose wiring is known must be named by it."""

from collections.abc import Callable

import network_reports as nr
import numpy as np
import pytest

from moelstrom.collectives_bench.laws import BANDWIDTH, LATENCY, fit_laws, name_laws

LINK, TOP = 64e9, 450e9
NODES: dict[str, Callable[[int], float]] = {
    "xgmi": lambda n: (n - 1) * LINK,
    "nvswitch": lambda n: TOP,
    "shared_bus": lambda n: 8e9 / n,
}


def _sweeps(busbw: Callable[[int], float], counts: tuple[int, ...], seed: int = 0) -> list:
    random = np.random.default_rng(seed)

    def time(op: str, n: int, size: int) -> float:
        beta = busbw(n) / nr.bus_factor(op, n)
        return (1e-5 + size / beta) * random.normal(1, 0.02)

    return [
        c
        for op in ("all_reduce", "all_gather")
        for n in counts
        for c in nr.sweep(op, range(n), lambda s, o=op, n=n: time(o, n, s), f"first {n}")
    ]


@pytest.mark.parametrize("law", BANDWIDTH)
@pytest.mark.parametrize("counts", [(2, 4, 8), (2, 3, 4, 5, 6, 7, 8), (2, 8)])
def test_the_law_of_a_node_is_named(law: str, counts: tuple[int, ...]) -> None:
    found = name_laws(nr.report(_sweeps(NODES[law], counts)))
    assert [(n.op, n.best, n.clear) for n in found] == [
        ("all_reduce", law, True),
        ("all_gather", law, True),
    ]
    for named in found:
        assert named.counts == [*counts]
        assert named.laws[0].rate == pytest.approx(
            NODES[law](2) * (2 if law == "shared_bus" else 1), rel=0.05
        )
        assert named.laws[0].residual_worst < 0.1 < named.laws[1].residual_worst


def test_the_papers_figures_come_out() -> None:
    # 8 GPUs: 448 GB/s over xGMI's seven links.
    (first, _) = name_laws(nr.report(_sweeps(NODES["xgmi"], (2, 4, 8))))
    assert first.busbw[-1] == pytest.approx(448e9, rel=0.03)
    assert "(n - 1) x 6" in first.text


def test_what_no_law_fits_is_not_clear() -> None:
    (first, _) = name_laws(nr.report(_sweeps(lambda n: TOP * n**0.5, (2, 4, 8))))
    assert not first.clear
    assert "nearly as well" in first.text


def test_groups_over_hosts_at_once_or_of_one_count_name_nothing() -> None:
    over_hosts = nr.report(_sweeps(NODES["xgmi"], (2, 8)), hosts=8)
    assert name_laws(over_hosts) == []
    assert name_laws(nr.report(_sweeps(NODES["xgmi"], (8,)))) == []
    together = nr.report(
        c
        for n in (2, 4)
        for c in nr.sweep("all_reduce", range(n), lambda s: 1e-5 + s / 1e9, at_once=2)
    )
    assert name_laws(together) == []


@pytest.mark.parametrize(
    ("law", "counts"), [("ring", (2, 4, 8)), ("tree", (2, 4, 8)), ("flat", (2, 8))]
)
def test_latency_laws(law: str, counts: tuple[int, ...]) -> None:
    found = fit_laws([*counts], [3e-6 * LATENCY[law](n) for n in counts], LATENCY)
    assert found[0].name == law
    assert found[0].rate == pytest.approx(3e-6)


def test_the_rate_weighs_every_count_alike() -> None:
    # 1 / 90 and 1 / 110 by hand: their sum over the sum of their squares.
    (best, *_) = fit_laws([2, 4], [90.0, 110.0], BANDWIDTH)
    assert (best.name, best.rate) == ("nvswitch", pytest.approx(98.02, abs=0.01))
