"""A picture of a run, from its JSON-lines log."""

from pathlib import Path
from typing import Any

import matplotlib

from .log import read
from .records import EvalRecord, StepRecord


def draw(folder: Path) -> Path:
    """Write `run.png` into the run's folder: losses, speed, expert balance, gradient norm."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read(folder)
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    try:
        steps = [r for r in records if isinstance(r, StepRecord)]
        _losses(axes[0, 0], steps, [r for r in records if isinstance(r, EvalRecord)])
        _line(axes[0, 1], steps, "tokens_per_s", "tokens / s")
        _line(axes[1, 0], steps, "expert_balance", "largest expert load / mean")
        _line(axes[1, 1], steps, "grad_norm", "gradient norm")
        _rate(axes[1, 1], steps)
        figure.suptitle(folder.resolve().name, parse_math=False)
        path = folder / "run.png"
        figure.savefig(path, dpi=110)
    finally:
        pyplot.close(figure)
    return path


def _losses(axis: Any, steps: list[StepRecord], evaluations: list[EvalRecord]) -> None:
    _line(axis, steps, "loss", "cross-entropy (nats / token)", label="training")
    for domain in evaluations[-1].loss if evaluations else ():
        points = [(r.step, r.loss[domain]) for r in evaluations if domain in r.loss]
        axis.plot(*zip(*points, strict=True), "o-", label=f"validation, {domain}")
    axis.legend()


def _line(
    axis: Any, steps: list[StepRecord], field: str, name: str, label: str | None = None
) -> None:
    axis.plot(*_points(steps, field), linewidth=1.2, label=label)
    axis.set_xlabel("step")
    axis.set_ylabel(name)
    axis.grid(alpha=0.3)


def _rate(axis: Any, steps: list[StepRecord]) -> None:
    other = axis.twinx()
    other.plot(*_points(steps, "lr"), "C1--", linewidth=1.2)
    other.set_ylabel("learning rate (dashed)")


def _points(steps: list[StepRecord], field: str) -> tuple[list[int], list[float]]:
    """The steps that have a field, and its values."""
    known = [(r.step, value) for r in steps if (value := getattr(r, field)) is not None]
    return [step for step, _ in known], [value for _, value in known]
