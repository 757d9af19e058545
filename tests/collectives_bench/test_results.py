"""From times to figures."""

import pytest

from moelstrom.collectives_bench.groups import Setting
from moelstrom.collectives_bench.plan import Point
from moelstrom.collectives_bench.results import Found, collective


def test_the_mean_is_of_all_ranks_and_the_percentiles_of_the_slowest() -> None:
    point = Point(Setting("node", ((4, 5), (6, 7))), "all_gather", "bf16", True, None, 4096)
    found = {4: Found([1.0, 2.0, 3.0], 1), 5: Found([3.0, 1.0, 5.0], 2)}
    result = collective(point, 4096, found)
    assert (result.ranks, result.group, result.at_once) == ([4, 5], "node", 2)
    assert (result.bytes, result.count, result.iterations) == (4096, 1024, 3)
    assert result.mean_s == pytest.approx(2.5)
    # The slower rank took 3, 2 and 5 s.
    assert (result.p50_s, result.max_s) == (3.0, 5.0)
    assert result.p95_s == pytest.approx(4.8)
    assert result.algbw == pytest.approx(4096 / 2.5)
    assert result.busbw == pytest.approx(4096 / 2.5 / 2)
    assert result.wrong == 3
    assert [(t.rank, t.mean_s, t.p50_s, t.max_s) for t in result.per_rank] == [
        (4, 2.0, 2.0, 3.0),
        (5, 3.0, 3.0, 5.0),
    ]


def test_what_was_not_checked_is_not_called_right() -> None:
    point = Point(Setting("world", ((0,),)), "barrier", "fp32", False, None, 0)
    result = collective(point, 0, {0: Found([1.0], None)})
    assert (result.wrong, result.algbw, result.count) == (None, 0, 0)
