"""A refused update changes nothing, on every rank and engine, and a resume after it is bitwise."""

import math
from pathlib import Path

import pytest
import torch
from engine_runs import Case, load, microbatches, save, start, state, train
from ranks import run_ranks

from moelstrom.moe.engines.base import StepHooks


def refuse(case: Case, path: Path) -> list[str]:
    """What is wrong around a refused third step; collective."""
    engine = start(case)
    train(engine, 0, 2)
    before, asked = state(engine), []

    def accept(loss: float, norm: float) -> bool:
        asked.append((loss, norm))
        return False

    metrics = engine.step(microbatches(2), StepHooks(accept))
    after = state(engine)
    problems = [str(key) for key in before if not torch.equal(before[key], after[key])]
    if asked != [(metrics.loss, metrics.grad_norm)] or not metrics.skipped:
        problems.append(f"asked {asked}, reported {metrics}")
    if (engine.steps_done, engine.skipped) != (3, 1):
        problems.append(f"{engine.steps_done} steps, {engine.skipped} skipped")
    again = load(case, save(engine, path, {"skipped": 1}))
    a, b = train(engine, 3, 6), train(again, 3, 6)
    return problems + ([] if torch.equal(a, b) else [f"{a.tolist()} and {b.tolist()}"])


def damaged(case: Case) -> list[str]:
    """What is wrong around a step whose gradient is not a number; collective."""
    engine = start(case)
    train(engine, 0, 2)
    before = state(engine)
    first = next(iter(engine.model.parameters()))
    hook = first.register_hook(lambda grad: grad * math.nan)
    metrics = engine.step(microbatches(2), StepHooks(lambda loss, norm: math.isfinite(norm)))
    hook.remove()
    after = state(engine)
    problems = [str(key) for key in before if not torch.equal(before[key], after[key])]
    good = engine.step(microbatches(3))
    if not metrics.skipped or math.isfinite(metrics.grad_norm) or not math.isfinite(good.grad_norm):
        problems.append(f"{metrics}, then {good}")
    return problems


def refuse_all(cases: list[Case], path: Path) -> dict[Case, list[str]]:
    found = {case: refuse(case, path / str(i)) for i, case in enumerate(cases)}
    return {case: problems + damaged(case) for case, problems in found.items()}


def leaves(rank: int) -> list[bool]:
    """Whether each of two steps ends with the wish to leave that `rank` has at the second."""
    engine = start(Case("native", 1, 1))
    here = torch.distributed.get_rank() == rank
    wishes = [StepHooks(), StepHooks(leave=lambda: here)]
    return [engine.step(microbatches(i), hooks).leave for i, hooks in enumerate(wishes)]


NATIVE = [Case("native", 2, 1), Case("native", 1, 0, "bf16", "muon")]
DEEPSPEED = [
    Case("deepspeed", 2, 0),
    Case("deepspeed", 1, 0, "bf16"),
    Case("deepspeed", 2, 1, "bf16"),
    Case("deepspeed", 2, 2),
    Case("deepspeed", 1, 3),
]


@pytest.mark.parametrize("engine", ["native", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_a_refused_update_changes_nothing(tmp_path: Path, engine: str) -> None:
    cases = NATIVE if engine == "native" else DEEPSPEED
    for rank in run_ranks(2, refuse_all, cases, tmp_path):
        for case, problems in rank.items():
            assert not problems, case


@pytest.mark.parametrize("rank", [0, 1])
def test_one_ranks_wish_to_leave_reaches_all(rank: int) -> None:
    assert run_ranks(2, leaves, rank) == [[False, True]] * 2
