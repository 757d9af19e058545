"""What the loop decides by itself."""

import math

import pytest
import torch

from moelstrom import UserError
from moelstrom.launch.loop import check_finite
from moelstrom.moe.engines.base import StepMetrics


def metrics(loss: float, norm: float) -> StepMetrics:
    return StepMetrics(loss, 0.0, norm, 1e-3, 10, torch.zeros(0, 0))


@pytest.mark.parametrize(
    ("loss", "norm", "named"), [(math.nan, 1.0, "loss is nan"), (1.0, math.inf, "norm is inf")]
)
def test_a_diverged_step_is_stopped(loss: float, norm: float, named: str) -> None:
    check_finite(7, metrics(1.0, 1.0))
    with pytest.raises(UserError, match=f"step 7: .*{named}; lower optimizer.lr"):
        check_finite(7, metrics(loss, norm))
