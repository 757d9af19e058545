"""A run that goes on under another plan: refused, or told from what to what."""

from typing import Any

from ... import UserError
from ...moe.config import ScheduleConfig
from ...moe.optim.schedule import learning_rate
from ..config import RunConfig


def changed_plan(saved: dict[str, Any], config: RunConfig, step: int) -> str:
    """What of the run's plan is another than in the checkpoint's config `saved`, from what to what,
    and the jump of the learning rate at `step`; empty if nothing."""
    past, present = _plan(saved), _plan(config.model_dump(mode="json"))
    named = [
        f"{name} {past[name]} -> {value}"
        for name, value in present.items()
        if name in past and past[name] != value
    ]
    if not named:
        return ""
    before, after = _rate(past, step), _rate(present, step)
    jump = (
        "" if before == after else f"; the learning rate goes on at {after:.3g}, not {before:.3g}"
    )
    return f"step {step}: the plan has changed: {', '.join(named)}{jump}"


def _plan(config: dict[str, Any]) -> dict[str, Any]:
    optimizer, schedule = config.get("optimizer") or {}, config.get("schedule") or {}
    chosen = {f"optimizer.{name}": optimizer.get(name) for name in ("lr", "weight_decay")}
    plan = {"steps": config.get("steps"), **chosen}
    plan |= {f"schedule.{name}": value for name, value in schedule.items()}
    return {name: value for name, value in plan.items() if value is not None}


def _rate(plan: dict[str, Any], step: int) -> float:
    prefix = "schedule."
    fields = {k.removeprefix(prefix): v for k, v in plan.items() if k.startswith(prefix)}
    known = {name: value for name, value in fields.items() if name in ScheduleConfig.model_fields}
    schedule = ScheduleConfig.model_validate(known)
    return learning_rate(schedule, plan.get("optimizer.lr", 0.0), step, plan.get("steps", step))


def check_steps_left(config: RunConfig, done: int) -> None:
    """Raise UserError where the run has done more steps than it should have."""
    if config.steps < done:
        raise UserError(
            f"steps: {config.steps} is below the {done} that the checkpoint has done; raise it, or "
            "give the run another output folder"
        )
