"""Times of an imagined network at counts of ranks that were never measured."""

import math
from collections.abc import Iterator
from typing import Any

import network_reports as nr
import pytest

from moelstrom import UserError
from moelstrom.collectives_bench.fit import fit_report
from moelstrom.collectives_bench.network import Group, Network
from moelstrom.collectives_bench.schema import Collective

LINK, NIC = 300e9, 50e9
HOP, FAR = 4e-6, 15e-6
NODE = 8
OPS = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")


def inside(op: str, n: int, size: float) -> float:
    """A ring (all-reduce: a tree) on a switch."""
    hops = 2 * math.log2(n) if op == "all_reduce" else n - 1
    return HOP * hops + size * nr.bus_factor(op, n) / LINK


def rail(op: str, n: int, size: float) -> float:
    """One rank of every host; at its own network card."""
    hops = 2 * math.log2(n) if op == "all_reduce" else n - 1
    return FAR * hops + size * nr.bus_factor(op, n) / NIC


def _sweeps(op: str, *counts: int, group: str = "node", **changes: Any) -> Iterator[Collective]:
    time = inside if group == "node" else rail
    each = 1 if group == "node" else NODE
    for n in counts:
        ranks = range(0, n * each, each)
        yield from nr.sweep(op, ranks, lambda s, n=n: time(op, n, s), group, **changes)


def _network(*sweeps: Iterator[Collective], hosts: int = 8) -> Network:
    found = [c for sweep in sweeps for c in sweep]
    return Network(fit_report(nr.report(found, hosts, hosts * NODE)))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [1024, 3 * nr.MIB, 2**30])
def test_one_count_gives_every_other_where_the_laws_hold(op: str, size: int) -> None:
    network = _network(_sweeps(op, 4))
    for n in (2, 4, 6, 8):
        found = network.seconds(op, size, Group(n, n))
        assert found == pytest.approx(inside(op, n, size), rel=1e-3)


def test_the_law_of_latency_is_read_off_where_counts_allow() -> None:
    def flat(n: int, size: int) -> float:
        return 1e-5 + size * nr.bus_factor("all_gather", n) / LINK

    network = _network(
        c
        for n in (2, 4)
        for c in nr.sweep("all_gather", range(n), lambda s, n=n: flat(n, s), "node")
    )
    assert network.seconds("all_gather", 1024, Group(8, 8)) == pytest.approx(
        flat(8, 1024), rel=1e-3
    )


def test_the_law_of_the_node_scales_bandwidth() -> None:
    def mesh(n: int, size: int) -> float:
        return 1e-6 * (n - 1) + size * nr.bus_factor("all_gather", n) / (64e9 * (n - 1))

    network = _network(
        c
        for n in (2, 4)
        for c in nr.sweep("all_gather", range(n), lambda s, n=n: mesh(n, s), "node")
    )
    big = 2**30
    assert network.seconds("all_gather", big, Group(8, 8)) == pytest.approx(mesh(8, big), rel=1e-2)


@pytest.mark.parametrize("op", OPS)
def test_measured_sizes_come_out_as_measured(op: str) -> None:
    def bent(size: int) -> float:
        return inside(op, 4, size) * (1 + 0.4 * math.sin(math.log(size)))

    network = _network(iter(nr.sweep(op, range(4), bent, "node")))
    for size in nr.SIZES:
        assert network.seconds(op, size, Group(4, 4)) == pytest.approx(bent(size), rel=1e-6)


@pytest.mark.parametrize("op", ["reduce_scatter", "all_gather"])
def test_groups_over_hosts_work_in_two_levels(op: str) -> None:
    network = _network(_sweeps(op, 8), _sweeps(op, 4, group="rail", at_once=8), hosts=4)
    for hosts in (4, 16, 1250):
        size = 256 * nr.MIB
        found = network.seconds(op, size, Group(hosts * NODE, NODE))
        expected = inside(op, NODE, size) + rail(op, hosts, size / NODE)
        assert found == pytest.approx(expected, rel=1e-3)


def test_an_all_reduce_over_hosts_scatters_reduces_and_gathers() -> None:
    network = _network(
        _sweeps("reduce_scatter", 8),
        _sweeps("all_gather", 8),
        _sweeps("all_reduce", 4, group="rail", at_once=8),
    )
    size = 64 * nr.MIB
    expected = inside("reduce_scatter", 8, size) + inside("all_gather", 8, size)
    expected += rail("all_reduce", 16, size / 8)
    found = network.seconds("all_reduce", size, Group(128, 8))
    assert found == pytest.approx(expected, rel=1e-3)


def test_without_rails_the_whole_worlds_ring_is_scaled() -> None:
    def ring(n: int, size: float) -> float:
        return FAR * (n - 1) + size * nr.bus_factor("all_gather", n) / NIC

    network = _network(iter(nr.sweep("all_gather", range(16), lambda s: ring(16, s))), hosts=2)
    found = network.seconds("all_gather", 2**30, Group(10_000, NODE))
    assert found == pytest.approx(ring(10_000, 2**30), rel=1e-2)


def test_an_exchange_over_hosts_is_bound_by_what_leaves_them() -> None:
    def exchange(n: int, size: float) -> float:
        return FAR * (n - 1) + size * (n - NODE) / n / NIC

    world = nr.sweep("all_to_all", range(16), lambda s: exchange(16, s))
    network = _network(iter(world), _sweeps("all_to_all", 8), hosts=2)
    size = 2**30
    for n in (16, 64, 512):
        found = network.seconds("all_to_all", size, Group(n, NODE))
        assert found == pytest.approx(exchange(n, size), rel=1e-2)
    # Half of the bytes stay, over links that are six times faster: the card still binds.
    within = network.seconds("all_to_all", size, Group(8, 8))
    assert within == pytest.approx(inside("all_to_all", 8, size), rel=1e-2)


def test_fits_taken_together_are_used_for_groups_that_run_together() -> None:
    network = _network(
        _sweeps("all_gather", 4),
        iter(nr.sweep("all_gather", range(4), lambda s: 3 * inside("all_gather", 4, s), at_once=2)),
    )
    alone = network.seconds("all_gather", nr.MIB, Group(4, 4))
    together = network.seconds("all_gather", nr.MIB, Group(4, 4, at_once=2))
    assert together == pytest.approx(3 * alone, rel=1e-3)


def test_plain_fits_stand_in_for_ragged_exchanges_but_not_skewed_ones() -> None:
    skewed = nr.sweep("all_to_all_v", range(4), lambda s: 9.0 + s, load="zipf:1.5")
    network = _network(_sweeps("all_to_all", 4), iter(skewed))
    found = network.seconds("all_to_all_v", nr.MIB, Group(4, 4))
    assert found == pytest.approx(inside("all_to_all", 4, nr.MIB), rel=1e-3)


def test_what_was_not_measured_is_named() -> None:
    network = _network(_sweeps("all_gather", 4))
    with pytest.raises(UserError, match="no fit of reduce_scatter within a host"):
        network.seconds("reduce_scatter", 1024, Group(4, 4))
    with pytest.raises(UserError, match="no fit of all_gather between hosts"):
        network.seconds("all_gather", 1024, Group(16, 8))


def test_one_rank_and_no_bytes_take_no_time() -> None:
    network = _network()
    assert network.seconds("all_gather", 1024, Group(1, 1)) == 0
    assert network.seconds("all_gather", 0, Group(4, 4)) == 0
