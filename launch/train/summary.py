"""A run in a few numbers, as JSON that can be compared and committed."""

import json
import statistics
from pathlib import Path
from typing import Any

from ... import UserError
from .log import LOG_NAME, read
from .records import CheckpointRecord, EvalRecord, RunRecord, StepRecord, to_json

WARM_UP_STEPS = 10
"""Steps after a start that compile, allocate and fill caches: left out of the speeds."""


def summarise(folder: Path) -> dict[str, Any]:
    """Summarise a run's log, and write it to `summary.json` there. Raises UserError without one.

    `tokens_per_s`, `mfu` and `step_s` are medians over the steps that were not warm-up; `loss` is
    the mean of the last ten; stalls are the milliseconds that training waited for a save.
    """
    records = read(folder)
    starts = [r for r in records if isinstance(r, RunRecord)]
    if not starts:
        raise UserError(f"{folder}: no run has written {LOG_NAME} here; give a run's output folder")
    steps = [r for r in records if isinstance(r, StepRecord)]
    losses = [r.loss for r in steps if r.loss is not None]
    evaluations = [r.loss for r in records if isinstance(r, EvalRecord)]
    run = to_json(starts[-1])
    summary = {
        "run": folder.resolve().name,
        **{key: value for key, value in run.items() if key not in ("kind", "time", "step")},
        "starts_at_steps": [r.step for r in starts],
        "steps_logged": len(steps),
        "loss": statistics.fmean(losses[-10:]) if losses else None,
        "validation_loss": evaluations[-1] if evaluations else {},
        **_speeds(_warm(steps, [r.step for r in starts])),
        "checkpoint_stall_ms": [r.stall_ms for r in records if isinstance(r, CheckpointRecord)],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _warm(steps: list[StepRecord], starts: list[int]) -> list[StepRecord]:
    cold = {start + i for start in starts for i in range(1, WARM_UP_STEPS + 1)}
    return [r for r in steps if r.step not in cold]


def _speeds(steps: list[StepRecord]) -> dict[str, float]:
    found = {
        "tokens_per_s": [r.tokens_per_s for r in steps],
        "mfu": [r.mfu for r in steps],
        "step_s": [r.step_s for r in steps],
    }
    known = {key: [v for v in values if v is not None] for key, values in found.items()}
    return {key: statistics.median(values) for key, values in known.items() if values}
