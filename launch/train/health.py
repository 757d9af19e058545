"""What to do about a step that went wrong: leave its update out, go back, or stop."""

import json
import math
import os
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import UserError
from ..config import HealthConfig

HEALTH_NAME = "health.jsonl"
"""In the run's folder: every roll-back, one JSON object a line."""
ADVICE = "lower optimizer.lr, or raise schedule.warmup_steps, and resume from the last checkpoint"


class RollBackError(Exception):
    """The run must start again from the checkpoint before this step; all ranks raise it."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a step, and the `policy` (skip, rollback, stop) for it."""

    policy: str
    text: str


class Health:
    """Judges every step by its loss and gradient norm, which are the same on every rank.

    A spike is a loss or norm above `spike_factor` times its median over the last `spike_window`
    good steps; before there are so many there is none.
    """

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.skips = 0
        """Refused updates since the last good step."""
        self._recent = {
            name: deque[float](maxlen=config.spike_window) for name in ("loss", "gradient norm")
        }

    @property
    def asks(self) -> bool:
        """Whether a step must be judged before its update."""
        return "skip" in (self.config.nan, self.config.spike)

    def accept(self, loss: float, norm: float) -> bool:
        """Whether the step's update may be done."""
        return self.fault(loss, norm) is None

    def fault(self, loss: float, norm: float) -> Fault | None:
        """What is wrong with a step, if anything; changes nothing."""
        values = {"loss": loss, "gradient norm": norm}
        for name, value in values.items():
            if not math.isfinite(value):
                return Fault(self.config.nan, f"the {name} is {value}")
        if self.config.spike != "off":
            for name, value in values.items():
                text = self._spike(name, value)
                if text:
                    return Fault(self.config.spike, text)
        return None

    def _spike(self, name: str, value: float) -> str:
        recent = self._recent[name]
        if len(recent) < self.config.spike_window:
            return ""
        median = statistics.median(recent)
        if value <= self.config.spike_factor * median:
            return ""
        return f"the {name} is {value:.4g}, its median {median:.4g}"

    def good(self, loss: float, norm: float) -> None:
        """Take a good step."""
        self.skips = 0
        for name, value in (("loss", loss), ("gradient norm", norm)):
            self._recent[name].append(value)

    def skipped(self, step: int, fault: Fault) -> str:
        """Count a refused update; what to tell of it. Raises UserError if there were too many."""
        self.skips += 1
        if self.skips > self.config.max_skips:
            raise UserError(
                f"step {step}: {fault.text}, after {self.config.max_skips} skipped updates in a "
                f"row (health.max_skips); {ADVICE}"
            )
        return f"step {step}: {fault.text}: its update was skipped"

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge alike."""
        return {"skips": self.skips, **{name: list(v) for name, v in self._recent.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`; an empty one changes nothing."""
        self.skips = state.get("skips", 0)
        for name, values in self._recent.items():
            values.extend(state.get(name, ()))


@dataclass(frozen=True)
class RollBack:
    """One line of `health.jsonl`: the bad `step`, and its `samples` [first, end), which the run
    passes over from then on. `behind`: the step of a checkpoint that was set aside."""

    step: int
    samples: tuple[int, int]
    behind: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for what is no range."""
        first, end = self.samples
        if not 0 <= first <= end:
            raise ValueError(f"samples {first} to {end}")


def record_rollback(folder: Path, back: RollBack, reason: str) -> None:
    """Note a roll-back durably."""
    line = {"kind": "rollback", "time": time.time(), "reason": reason, **asdict(back)}
    with (folder / HEALTH_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rollbacks(folder: Path) -> list[RollBack]:
    """Every roll-back so far. Raises UserError for a damaged file."""
    path = folder / HEALTH_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill can cut the last line short.
        return [_parse(json.loads(line)) for line in lines if line.endswith("\n")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); each line must be a roll-back as the run wrote it; "
            "restore the file, or move it away to train on every sample"
        ) from None


def passed_over(folder: Path) -> list[tuple[int, int]]:
    """The samples [first, end) of every roll-back so far."""
    return [back.samples for back in rollbacks(folder)]


def _parse(line: dict[str, Any]) -> RollBack:
    first, end = (int(sample) for sample in line["samples"])
    return RollBack(int(line["step"]), (first, end), line.get("behind"))
