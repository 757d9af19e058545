"""Learning-rate schedules."""

import math

from ..config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """Rate of the update number `step` (0-based) in a run of `steps`.

    Linear warm-up to `peak`, then a cosine to `min_ratio * peak`, or WSD (warm-up, stable, decay;
    arXiv 2404.06395): constant, then linear over the last `decay_fraction` of the run.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    low = schedule.min_ratio
    if schedule.name == "cosine":
        span = max(steps - schedule.warmup_steps, 1)
        done = min((step - schedule.warmup_steps) / span, 1.0)
        return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))
    left = min(max((steps - step) / decay_steps(schedule, steps), 0.0), 1.0)
    return peak * (low + (1 - low) * left)


def decay_steps(schedule: ScheduleConfig, steps: int) -> int:
    """Updates of WSD's decay in a run of `steps`."""
    return max(round(steps * schedule.decay_fraction), 1)
