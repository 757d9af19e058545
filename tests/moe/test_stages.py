"""Seconds by stage: each counted once, whatever is nested."""

import time

import pytest
import torch

from moelstrom.moe.stages import CLOCK, StageClock, waiting


def test_an_inner_stage_takes_its_time_from_the_outer_one() -> None:
    clock = StageClock()
    heard: list[str] = []
    clock.listener = heard.append
    began = time.perf_counter()
    with clock.stage("compute"):
        time.sleep(0.02)
        with clock.stage("wait"):
            time.sleep(0.05)
    seconds = clock.take()
    assert 0.02 <= seconds["compute"] < 0.05 <= seconds["wait"]
    assert sum(seconds.values()) <= time.perf_counter() - began + 0.01
    assert heard == ["compute", "wait", "compute", "idle", "idle"]
    assert sum(clock.take().values()) < 0.02


def test_a_stage_ends_with_an_error() -> None:
    clock = StageClock()
    with pytest.raises(ValueError), clock.stage("update"):
        raise ValueError
    assert clock.current == "idle"


def test_a_compiled_block_holds_no_clock() -> None:
    """One graph: reading the time would cut it."""

    def block(x: torch.Tensor) -> torch.Tensor:
        with waiting():
            return x * 2

    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
    with waiting():
        assert CLOCK.current == "wait"
