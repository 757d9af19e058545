"""Schedules and Muon."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelstrom.moe.config import ScheduleConfig
from moelstrom.moe.optim.muon import Muon, newton_schulz
from moelstrom.moe.optim.schedule import learning_rate


@given(st.sampled_from(["cosine", "wsd"]), st.integers(0, 20), st.integers(1, 100), st.floats(0, 1))
def test_rate_rises_once_and_never_rises_again(
    name: str, warmup: int, rest: int, low: float
) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=warmup, min_ratio=low)
    rates = [learning_rate(schedule, 2.0, i, warmup + rest) for i in range(warmup + rest)]
    after = rates[warmup:]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert all(a >= b - 1e-12 for a, b in pairwise(after))
    assert after[0] == pytest.approx(2.0) or name == "wsd"
    assert all(2.0 * low - 1e-9 <= rate <= 2.0 for rate in after)


def test_wsd_is_flat_then_linear() -> None:
    schedule = ScheduleConfig(name="wsd", decay_fraction=0.5, min_ratio=0.0)
    rates = [learning_rate(schedule, 1.0, i, 10) for i in range(11)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.0])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 20), (2, 20, 6)])
def test_newton_schulz_is_near_the_orthogonal_factor(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    m = torch.randn(shape)
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    values = torch.linalg.svdvals(newton_schulz(m, 5))
    assert values.min() > 0.3 and values.max() < 1.3
    similarity = (newton_schulz(m, 5) * (u @ vh)).sum((-2, -1)) / (u @ vh).square().sum((-2, -1))
    assert similarity.min() > 0.7


def test_muon_update_by_hand() -> None:
    torch.manual_seed(0)
    weight, gradients = torch.randn(2, 4, 6), [torch.randn(2, 4, 6) for _ in range(2)]
    p = torch.nn.Parameter(weight.clone())
    optimizer = Muon([p], lr=0.1, momentum=0.9, ns_steps=5, weight_decay=0.5)
    expected, m = weight.clone(), torch.zeros_like(weight)
    for gradient in gradients:
        p.grad = gradient
        optimizer.step()
        m = 0.9 * m + gradient
        expected = expected * (1 - 0.05) - 0.1 * 0.2 * 6**0.5 * newton_schulz(m, 5)
    torch.testing.assert_close(p.detach(), expected)
