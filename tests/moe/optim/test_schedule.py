"""Every rate of a short run, by hand."""

import pytest

from moelstrom.moe.config import ScheduleConfig
from moelstrom.moe.optim.schedule import decay_steps, learning_rate


def rates(steps: int, **fields: object) -> list[float]:
    schedule = ScheduleConfig.model_validate(fields)
    return [learning_rate(schedule, 2.0, step, steps) for step in range(steps)]


def test_warm_up_begins_at_its_first_share_and_ends_at_the_peak() -> None:
    """Never at 0: the first step would be lost."""
    assert rates(6, name="wsd", warmup_steps=4, decay_fraction=0)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(6, name="cosine", warmup_steps=4)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_cosine() -> None:
    half = [2 * (0.1 + 0.9 * share) for share in (1.0, 0.75, 0.25)]
    assert rates(3, name="cosine", min_ratio=0.1) == pytest.approx(half)


def test_wsd() -> None:
    expected = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.55, 1.1, 0.65]
    found = rates(10, name="wsd", warmup_steps=2, decay_fraction=0.4, min_ratio=0.1)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("fraction", "steps"), [(0.0, 1), (0.2, 2), (0.25, 2), (1.0, 10)])
def test_decay_steps(fraction: float, steps: int) -> None:
    assert decay_steps(ScheduleConfig(decay_fraction=fraction), 10) == steps
