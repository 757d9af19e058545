"""What to do about a step that went wrong: leave its update out, go back, or stop."""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

from ... import UserError
from ..config import HealthConfig

ADVICE = "lower optimizer.lr, or raise schedule.warmup_steps, and resume from the last checkpoint"


@dataclass(frozen=True)
class StepFault:
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

    def fault(self, loss: float, norm: float) -> StepFault | None:
        """What is wrong with a step, if anything; changes nothing."""
        values = {"loss": loss, "gradient norm": norm}
        for name, value in values.items():
            if not math.isfinite(value):
                return StepFault(self.config.nan, f"the {name} is {value}")
        if self.config.spike != "off":
            for name, value in values.items():
                text = self._spike(name, value)
                if text:
                    return StepFault(self.config.spike, text)
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

    def skipped(self, step: int, fault: StepFault) -> str:
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
