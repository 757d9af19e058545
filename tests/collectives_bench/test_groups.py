"""Which ranks measure together."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.collectives_bench.groups import Setting, settings
from moelstrom.collectives_bench.schema import Host


def cluster(*sizes: int) -> list[Host]:
    hosts, first = [], 0
    for index, size in enumerate(sizes):
        hosts.append(Host(f"host{index}", [*range(first, first + size)], "a device", size))
        first += size
    return hosts


def test_world_nodes_and_rails() -> None:
    hosts = cluster(2, 3)
    assert settings("world", hosts, "both") == [Setting("world", ((0, 1, 2, 3, 4),))]
    nodes, rails = ((0, 1), (2, 3, 4)), ((0, 2), (1, 3))
    assert settings("node", hosts, True) == [Setting("node", nodes)]
    assert settings("node", hosts, False) == [Setting("node", nodes[:1])]
    # Rank 4 is alone on its rail.
    assert settings("rail", hosts, "both") == [Setting("rail", rails[:1]), Setting("rail", rails)]


def test_one_group_is_measured_once() -> None:
    for at_once in (True, False, "both"):
        assert settings("node", cluster(3), at_once) == [Setting("node", ((0, 1, 2),))]


def test_what_the_hosts_lack_is_empty() -> None:
    assert settings("rail", cluster(4), "both") == []
    assert settings("node", cluster(1, 1), "both") == []
    assert settings("counts", cluster(1), "both") == []
    assert settings("pairs", cluster(1), "both") == []


def test_counts_are_of_the_first_host() -> None:
    found = settings("counts", cluster(4, 4), "both")
    assert [s.groups for s in found] == [((0, 1),), ((0, 1, 2),), ((0, 1, 2, 3),)]
    assert [s.name for s in found] == ["first 2", "first 3", "first 4"]
    many = [len(s.groups[0]) for s in settings("counts", cluster(72), "both")]
    assert many == [*range(2, 17), 32, 64, 72]


@given(st.integers(2, 9), st.sampled_from([True, False, "both"]))
def test_every_pair_meets_once(n: int, at_once: bool | str) -> None:
    found = settings("pairs", cluster(n), at_once)
    assert sorted(pair for s in found for pair in s.groups) == [*combinations(range(n), 2)]
    for setting in found:
        ranks = [rank for pair in setting.groups for rank in pair]
        assert len(ranks) == len(set(ranks)) == 2 * setting.at_once
        assert setting.at_once == (1 if at_once is False else n // 2)


def test_groups_of_ones_own() -> None:
    (alone, together) = settings("0,3;2,1", cluster(4), "both")
    assert (alone.groups, together.groups) == (((0, 3),), ((0, 3), (1, 2)))
    assert together.of(2) == (1, 2) and alone.of(2) is None
    with pytest.raises(UserError, match="names rank 4, but the ranks are 0 to 3"):
        settings("0,4", cluster(4), "both")
