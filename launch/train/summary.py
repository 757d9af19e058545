"""A run in a few numbers, as JSON that can be compared and committed."""

import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from ... import UserError, __version__
from .log import LOG_NAME, read

WARM_UP_STEPS = 10
"""Steps after a start that compile, allocate and fill caches: left out of the speeds."""
Records = list[dict[str, Any]]


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement has to name: hardware and versions."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else _cpu(),
        "moelstrom": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def summarise(folder: Path) -> dict[str, Any]:
    """Summarise a run's log, and write it to `summary.json` there. Raises UserError without one.

    `tokens_per_s`, `mfu` and `step_s` are medians over the steps that were not warm-up; `loss` is
    the mean of the last ten; stalls are the milliseconds that training waited for a save.
    """
    records = read(folder)
    starts = [r for r in records if r["kind"] == "run"]
    if not starts:
        raise UserError(f"{folder}: no run has written {LOG_NAME} here; give a run's output folder")
    steps = [r for r in records if r["kind"] == "step"]
    # A step whose update was skipped has none.
    losses = [r["loss"] for r in steps if "loss" in r]
    summary = {
        "run": folder.resolve().name,
        **{key: value for key, value in starts[-1].items() if key not in ("kind", "time", "step")},
        "starts_at_steps": [r["step"] for r in starts],
        "steps_logged": len(steps),
        "loss": statistics.fmean(losses[-10:]) if losses else None,
        "validation_loss": next((r["loss"] for r in reversed(records) if r["kind"] == "eval"), {}),
        **_speeds(_warm(steps, [r["step"] for r in starts])),
        "checkpoint_stall_ms": [r["stall_ms"] for r in records if r["kind"] == "checkpoint"],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _warm(steps: Records, starts: list[int]) -> Records:
    cold = {start + i for start in starts for i in range(1, WARM_UP_STEPS + 1)}
    return [r for r in steps if r["step"] not in cold]


def _speeds(steps: Records) -> dict[str, float]:
    keys = ("tokens_per_s", "mfu", "step_s")
    values = {key: [r[key] for r in steps if key in r] for key in keys}
    return {key: statistics.median(found) for key, found in values.items() if found}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
