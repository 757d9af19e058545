"""Faults inside a worker."""

import threading
import time
from pathlib import Path

import torch
from torch import nn

from moelstrom.launch.chaos import control
from moelstrom.launch.chaos.hook import Hook


def gradient_of_a_step(model: nn.Module) -> torch.Tensor:
    model.zero_grad()
    model(torch.ones(2, 3)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_without_a_fault_nothing_happens(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    Hook(tmp_path, 0).before_step(1, model)
    assert gradient_of_a_step(model).isfinite().all()


def test_a_nan_comes_once_in_its_step_on_its_rank(tmp_path: Path) -> None:
    control.arm(tmp_path, 3, {"kind": "nan", "rank": 1, "at_step": 5})
    model = nn.Linear(3, 2)
    other, hook = Hook(tmp_path, 0), Hook(tmp_path, 1)
    for step in (4, 5):
        other.before_step(step, model)
        hook.before_step(step, model)
        assert bool(gradient_of_a_step(model).isnan().any()) == (step == 5)
    found = control.fired(tmp_path, 3)
    assert found is not None and found["step"] == 5 and abs(found["time"] - time.time()) < 10
    # Another worker that comes to the same step, after a restart, does not repeat it.
    for step in (5, 6):
        Hook(tmp_path, 1).before_step(step, model)
        assert gradient_of_a_step(model).isfinite().all()


def test_a_slow_rank_takes_its_factor(tmp_path: Path) -> None:
    control.arm(tmp_path, 0, {"kind": "slow", "rank": 0, "at_step": 3, "factor": 4.0, "steps": 2})
    hook, model, times = Hook(tmp_path, 0), nn.Linear(3, 2), []
    for step in range(1, 7):
        began = time.monotonic()
        hook.before_step(step, model)
        time.sleep(0.05)
        times.append(time.monotonic() - began)
    slow, fast = times[2:4], times[:2] + times[4:]
    assert min(slow) > 0.19 and sorted(fast)[1] < 0.1


def test_a_hang_does_not_return(tmp_path: Path) -> None:
    control.arm(tmp_path, 0, {"kind": "hang", "rank": 0, "at_step": 1})
    step = threading.Thread(
        target=Hook(tmp_path, 0).before_step, args=(1, nn.Linear(1, 1)), daemon=True
    )
    step.start()
    step.join(0.3)
    assert step.is_alive() and control.fired(tmp_path, 0)


def test_a_fault_can_be_taken_back(tmp_path: Path) -> None:
    control.arm(tmp_path, 0, {"kind": "nan", "rank": 0, "at_step": 1})
    control.disarm(tmp_path)
    assert control.armed(tmp_path, 0, 9) is None and control.fired(tmp_path, 0) is None
