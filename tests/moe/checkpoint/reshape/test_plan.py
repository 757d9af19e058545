"""Plans: exact, within the memory budget, with an estimate that writes nothing."""

from pathlib import Path

import pytest
from reshape_states import plan_for, synthetic

from moelstrom import UserError
from moelstrom.moe.checkpoint.reshape.plan import SMALLEST, estimate_seconds, fit, make_plan
from moelstrom.moe.state.source import Slab


def test_tensors_that_nobody_holds_go_to_rank_0(tmp_path: Path) -> None:
    source = synthetic(tmp_path)
    plan = make_plan(source, [[], [Slab("rng/0/cpu", 0, 5056)]])
    assert {part.rank for parts in plan.parts.values() for part in parts} == {0, 1}
    assert [part.rank for part in plan.parts["rng/0/cpu"]] == [1]
    assert sum(f["bytes"] for f in plan.as_json()["files"]) >= plan.nbytes


def test_an_element_held_twice_is_refused(tmp_path: Path) -> None:
    held = [[Slab("rng/0/cpu", 0, 5056)], [Slab("rng/0/cpu", 50, 1)]]
    with pytest.raises(ValueError, match=r"\[50, 51\) are held twice"):
        make_plan(synthetic(tmp_path), held)


def test_buffers_fit_the_budget() -> None:
    for memory in (3 * SMALLEST, 10 * SMALLEST, 2**24, 2**40):
        for readers in (1, 3, 64):
            count, chunk = fit(memory, readers)
            assert 1 <= count <= readers and chunk >= SMALLEST
            assert 3 * count * chunk <= memory
    with pytest.raises(UserError, match=f"--memory 100: give {3 * SMALLEST} bytes or more"):
        fit(100, 1)


def test_the_estimate_leaves_nothing(tmp_path: Path) -> None:
    plan = plan_for(synthetic(tmp_path), tp=2)
    assert 0 < estimate_seconds(plan, tmp_path / "not" / "yet") < 60
    assert list(tmp_path.iterdir()) == []
