"""The points of a sweep."""

from typing import Any

import numpy as np
import pytest
import torch

from moelstrom import UserError
from moelstrom.collectives_bench.config import CollectivesConfig
from moelstrom.collectives_bench.operators import OPERATORS
from moelstrom.collectives_bench.plan import SweepPlan
from moelstrom.collectives_bench.schema import Host

CPU = torch.device("cpu")
HOSTS = [Host("a", [0, 1], "a CPU", 2), Host("b", [2, 3], "a CPU", 2)]


def plan(hosts: list[Host] = HOSTS, tables: Any = None, **fields: Any) -> SweepPlan:
    config = CollectivesConfig(**{"min_bytes": 1024, "max_bytes": 1024, **fields})
    return SweepPlan(config, hosts, CPU, tables or dict.fromkeys(config.loads))


def test_every_form_that_torch_has() -> None:
    found = plan()
    assert found.skips == []
    forms = {(p.op, p.in_place) for p in found.points}
    assert len(forms) == len(found.points) == 15
    assert {op for op, _ in forms} == set(OPERATORS)
    assert {("all_reduce", True), ("gather", False), ("gather", True)} < forms
    assert ("all_reduce", False) not in forms
    assert {p.size for p in found.points if p.op == "barrier"} == {0}


def test_a_form_that_torch_has_not_is_noted() -> None:
    found = plan(ops=("all_reduce", "all_gather"), in_place=False, groups=("world", "node"))
    assert [s.what for s in found.skips] == ["all_reduce out of place"]
    assert {p.op for p in found.points} == {"all_gather"}


def test_groups_alone_and_at_once() -> None:
    found = plan(ops=("all_reduce", "send_recv"), groups=("node", "rail", "pairs"))
    names = [p.what for p in found.points]
    assert names[:4] == [
        "all_reduce fp32 1 KiB node in place",
        "send_recv fp32 1 KiB node",
        "all_reduce fp32 1 KiB node x2 in place",
        "send_recv fp32 1 KiB node x2",
    ]
    assert names[-3:] == ["send_recv fp32 1 KiB pairs x2"] * 3 and len(names) == 11


def test_pairs_come_size_by_size() -> None:
    found = plan(ops=("send_recv",), groups=("pairs",), max_bytes=4096)
    assert [p.size for p in found.points] == [1024] * 3 + [2048] * 3 + [4096] * 3
    assert len({p.setting for p in found.points[:3]}) == 3


def test_what_one_process_cannot_measure_is_noted() -> None:
    groups = ("world", "node", "rail", "pairs", "counts")
    found = plan([Host("a", [0], "a CPU", 1)], groups=groups)
    assert {s.what for s in found.skips} == {
        *("send_recv world", "node", "rail", "pairs", "counts")
    }
    assert {p.op for p in found.points} == {*OPERATORS} - {"send_recv"}


def test_sizes_below_a_part_for_each_rank_are_noted() -> None:
    found = plan(ops=("all_gather", "all_reduce"), min_bytes=2, max_bytes=64, in_place="both")
    small = [s.bytes for s in found.skips if s.what.startswith("all_gather")]
    assert small == [2, 4, 8, 16, 32] * 2
    assert [s.bytes for s in found.skips if s.what.startswith("all_reduce")] == [2]
    assert sorted(p.size for p in found.points if p.op == "all_gather") == [64, 64]


def test_loads_only_where_they_count() -> None:
    found = plan(ops=("all_to_all", "all_to_all_v"), loads=("balanced", "zipf:2"))
    assert [(p.op, p.load) for p in found.points] == [
        ("all_to_all", None),
        ("all_to_all_v", "balanced"),
        ("all_to_all_v", "zipf:2"),
    ]
    even, balanced, zipf = found.points
    ranks = (0, 1, 2, 3)
    assert found.bytes(even, ranks) == found.bytes(balanced, ranks) == 1024
    # Every rank sends 1 KiB, most of it to one, which gets more.
    matrix = found.matrix(zipf, 4)
    assert matrix is not None and (matrix.sum(axis=1) == 256).all()
    assert found.bytes(zipf, ranks) == 4 * matrix.sum(axis=0).max() > 2048
    assert found.memory(zipf) == 2 * (found.bytes(zipf, ranks) + 1024)


def test_a_load_that_does_not_fit_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(UserError, match="2 rows for 4 ranks"):
        plan(loads=("matrix:x",), tables={"matrix:x": np.ones((2, 2))})
