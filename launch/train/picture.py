"""A picture of a run, from its JSON-lines log."""

from pathlib import Path
from typing import Any

import matplotlib

from .log import read

Records = list[dict[str, Any]]


def draw(folder: Path) -> Path:
    """Write `run.png` into the run's folder: losses, speed, expert balance, gradient norm."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read(folder)
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    try:
        steps = [r for r in records if r["kind"] == "step"]
        _losses(axes[0, 0], steps, [r for r in records if r["kind"] == "eval"])
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


def _losses(axis: Any, steps: Records, evaluations: Records) -> None:
    _line(axis, steps, "loss", "cross-entropy (nats / token)", label="training")
    for domain in evaluations[-1]["loss"] if evaluations else ():
        points = [(r["step"], r["loss"][domain]) for r in evaluations if domain in r["loss"]]
        axis.plot(*zip(*points, strict=True), "o-", label=f"validation, {domain}")
    axis.legend()


def _line(axis: Any, steps: Records, key: str, name: str, label: str | None = None) -> None:
    with_key = [r for r in steps if key in r]
    values = [r[key] for r in with_key]
    axis.plot([r["step"] for r in with_key], values, linewidth=1.2, label=label)
    axis.set_xlabel("step")
    axis.set_ylabel(name)
    axis.grid(alpha=0.3)


def _rate(axis: Any, steps: Records) -> None:
    other = axis.twinx()
    other.plot([r["step"] for r in steps], [r["lr"] for r in steps], "C1--", linewidth=1.2)
    other.set_ylabel("learning rate (dashed)")
