"""What the benchmark takes, and what it refuses."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from moelstrom.collectives_bench.config import CollectivesConfig
from moelstrom.collectives_bench.operators import OPERATORS
from moelstrom.collectives_bench.operators.base import DTYPES

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_every_operation_and_dtype_of_the_config_exists() -> None:
    assert CollectivesConfig().ops == tuple(OPERATORS)
    for dtype in DTYPES:
        CollectivesConfig(dtypes=(dtype,))


def test_sizes_by_device() -> None:
    config = CollectivesConfig(min_bytes="64KiB", factor=4, max_bytes="3MiB")
    assert config.sizes(CPU) == [2**16, 2**18, 2**20]
    assert CollectivesConfig().sizes(CPU)[::16] == [2**10, 2**26]
    assert CollectivesConfig().sizes(GPU)[-1] == 2**30
    assert CollectivesConfig(min_bytes=2**33).sizes(GPU) == [2**33]


def test_a_rank_is_late_where_it_was_told_to() -> None:
    config = CollectivesConfig(inject="2:all_gather:0.5")
    assert config.sleep(2, "all_gather") == 0.5
    assert config.sleep(1, "all_gather") == config.sleep(2, "barrier") == 0
    assert CollectivesConfig(inject="0:*:1").sleep(0, "barrier") == 1
    assert CollectivesConfig().sleep(0, "barrier") == 0


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("ops", ["all_reduces"], "all_reduce"),
        ("ops", [], "at least 1"),
        ("dtypes", ["fp8"], "bf16"),
        ("max_bytes", 512, "below min_bytes"),
        ("max_bytes", "3 apples", "64KiB"),
        ("groups", ["nodes"], "world, node"),
        ("groups", ["0,1;1,2"], "stands twice"),
        ("groups", ["0,;1"], "0,1;2,3"),
        ("loads", ["zipf:hot"], "zipf:S"),
        ("loads", ["zipf:-1"], "zipf:S"),
        ("loads", ["log:"], "log:PATH"),
        ("inject", "1:all:2", "RANK:OP:SECONDS"),
        ("budget_s", 40, "half of timeout_s"),
        ("sizes", 3, "Extra inputs"),
    ],
)
def test_mistakes_are_explained(field: str, value: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        CollectivesConfig.model_validate({field: value})


def test_pairs_need_their_operation() -> None:
    with pytest.raises(ValidationError, match="add it to ops"):
        CollectivesConfig(groups=("pairs",), ops=("all_reduce",))
