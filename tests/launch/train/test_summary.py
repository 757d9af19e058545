"""A run's summary: what it counts, and what it leaves out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moelstrom import UserError
from moelstrom.launch.train.hardware import machine
from moelstrom.launch.train.log import LOG_NAME
from moelstrom.launch.train.summary import WARM_UP_STEPS, summarise


def write(folder: Path, *records: dict[str, Any]) -> Path:
    (folder / LOG_NAME).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def step(number: int, speed: float) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": float(number), "tokens_per_s": speed}


def test_medians_leave_out_the_steps_after_each_start(tmp_path: Path) -> None:
    cold = WARM_UP_STEPS
    steps = [step(i, 1.0 if i <= cold or 30 < i <= 30 + cold else 100.0) for i in range(1, 61)]
    starts = [{"kind": "run", "step": 0, "steps": 60}, {"kind": "run", "step": 30, "steps": 60}]
    evaluations = [{"kind": "eval", "step": i, "loss": {"code": i / 10}} for i in (30, 60)]
    saves = [{"kind": "checkpoint", "step": 60, "stall_ms": 2.5, "write_s": 1, "bytes": 8}]
    found = summarise(write(tmp_path, *starts, *steps, *evaluations, *saves))
    assert found["tokens_per_s"] == 100.0
    assert found["loss"] == sum(range(51, 61)) / 10
    assert found["validation_loss"] == {"code": 6.0}
    assert (found["starts_at_steps"], found["checkpoint_stall_ms"]) == ([0, 30], [2.5])
    assert "mfu" not in found
    assert json.loads((tmp_path / "summary.json").read_text()) == found


def test_exactly_the_first_steps_of_a_start_are_cold(tmp_path: Path) -> None:
    """Most steps are cold here, and the rest are told from their neighbours."""
    warm = (WARM_UP_STEPS + 1, WARM_UP_STEPS + 2, 40 + WARM_UP_STEPS + 1)
    numbers = [*range(1, WARM_UP_STEPS + 3), *range(41, 40 + WARM_UP_STEPS + 2)]
    steps = [step(i, 100.0 + warm.index(i) if i in warm else 7.0) for i in numbers]
    steps[-1] |= {"mfu": 0.25, "step_s": 0.5, "loss": None}
    starts = [{"kind": "run", "step": at, "steps": 60} for at in (0, 40)]
    found = summarise(write(tmp_path, *starts, *steps))
    assert (found["tokens_per_s"], found["mfu"], found["step_s"]) == (101.0, 0.25, 0.5)
    assert found["loss"] == sum(numbers[-11:-1]) / 10 and found["steps_logged"] == len(numbers)


def test_a_run_resumed_at_its_end(tmp_path: Path) -> None:
    found = summarise(write(tmp_path, {"kind": "run", "step": 60, "steps": 60}))
    assert found["loss"] is None and "tokens_per_s" not in found


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run has written"):
        summarise(tmp_path)


def test_the_machine_is_named() -> None:
    assert machine(torch.device("cpu"))["device"]
