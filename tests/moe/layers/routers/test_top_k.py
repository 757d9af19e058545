"""Routers: weights, balancing losses and the balancing bias."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.moe.grid import Grid
from moelstrom.moe.layers.base import Dims, Flow
from moelstrom.moe.layers.routers.base import Routing
from moelstrom.moe.layers.routers.top_k import TopK, TopKConfig

Make = Callable[..., TopK]


@pytest.fixture(scope="module")
def router(grid: Grid) -> Make:
    def make(**fields: Any) -> TopK:
        config = TopKConfig(**{"num_experts": 4, "top_k": 2, **fields})
        made = TopK(config, Dims(8, num_layers=1, norm_eps=1e-6, init_std=1.0), grid)
        torch.nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(0))
        return made

    return make


def route(gate: TopK, x: torch.Tensor) -> Routing:
    return gate(x, {}, Flow(torch.zeros(x.shape[:2], dtype=torch.int32)))


def inputs(batch: int = 3, length: int = 5) -> torch.Tensor:
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(1))


def test_softmax_weights_are_the_largest_probabilities(router: Make) -> None:
    gate, x = router(normalize_top_k=False), inputs()
    routing = route(gate, x)
    scores = (x @ gate.weight.T).softmax(-1).flatten(0, 1)
    top = scores.topk(2, -1)
    torch.testing.assert_close(routing.weights, top.values)
    assert torch.equal(routing.experts, top.indices)


def test_normalised_weights_sum_to_one(router: Make) -> None:
    for score in ("softmax", "sigmoid"):
        weights = route(router(score=score), inputs()).weights
        torch.testing.assert_close(weights.sum(-1), torch.ones(15))


def test_bias_moves_the_choice_and_not_the_weights(router: Make) -> None:
    gate = router(score="sigmoid", normalize_top_k=False)
    gate.bias.copy_(torch.tensor([9.0, 0, 0, 0]))
    routing = route(gate, inputs())
    assert (routing.experts == 0).any(-1).all()
    assert (routing.weights < 1).all()


def test_balance_loss_is_one_when_uniform(router: Make) -> None:
    gate = router(load_balance_weight=1.0, z_weight=0.0)
    torch.nn.init.zeros_(gate.weight)
    # Equal scores: P is uniform, so whatever f is, E * sum f P is 1 for each sequence.
    torch.testing.assert_close(route(gate, inputs()).aux, torch.tensor(3.0))


def test_z_loss(router: Make) -> None:
    gate, x = router(load_balance_weight=0.0, z_weight=1.0), inputs()
    expected = (x @ gate.weight.T).logsumexp(-1).square().mean(1).sum()
    torch.testing.assert_close(route(gate, x).aux, expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=4, max_size=4))
def test_bias_steps_towards_balance(router: Make, loads: list[int]) -> None:
    gate = router(bias_update_rate=0.01)
    gate.after_update(torch.tensor(loads))
    mean = sum(loads) / 4
    for load, bias in zip(loads, gate.bias.tolist(), strict=True):
        assert (bias > 0) == (load < mean) and (bias < 0) == (load > mean)


def test_casts_keep_the_bias_in_fp32(router: Make) -> None:
    gate = router().to(torch.bfloat16)
    assert gate.weight.dtype == torch.bfloat16 and gate.bias.dtype == torch.float32


def test_a_cast_keeps_the_bias(router: Make) -> None:
    made = router(bias_update_rate=1e-3)
    made.bias += 0.1234567
    assert made.to(torch.bfloat16).weight.dtype == torch.bfloat16
    torch.testing.assert_close(made.bias, torch.full((4,), 0.1234567), rtol=0, atol=0)


def test_no_balancing_loss_without_gradients(router: Make) -> None:
    with torch.no_grad():
        assert route(router(z_weight=0.0), inputs()).aux == 0


SCORES = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.6, 0.2, 0.1], [0.3, 0.4, 0.2, 0.1]])
"""Of three tokens for four experts; each row adds up to one."""


def by_hand(sequences: list[list[int]]) -> float:
    """The balancing loss of sequences made of SCORES' tokens, the numbers put in one by one. With
    two experts a token, tokens 0 and 2 choose experts 0 and 1, token 1 chooses 1 and 2."""
    chosen = [{0, 1}, {1, 2}, {0, 1}]
    total = 0.0
    for tokens in sequences:
        for expert in range(4):
            fraction = sum(expert in chosen[token] for token in tokens) / (2 * len(tokens))
            share = sum(SCORES[token, expert].item() for token in tokens) / len(tokens)
            total += 4 * fraction * share
    return total


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_balancing_loss_by_hand(router: Make, score: str, normalised: bool) -> None:
    """Scores become shares of one token before their mean; ours are made so that both kinds have
    the same shares, and sigmoid scores alone do not add up to one."""
    sequences = [[0, 1, 2, 0], [1, 1, 1, 2]]
    wanted = SCORES[torch.tensor(sequences)].double()
    logits = wanted.log() if score == "softmax" else (wanted / 2).logit()
    gate = router(score=score, normalize_top_k=normalised, load_balance_weight=0.5, z_weight=0.0)
    gate.weight = torch.nn.Parameter(torch.eye(4, 8))
    aux = route(gate, torch.nn.functional.pad(logits.float(), (0, 4))).aux
    assert aux.item() == pytest.approx(0.5 * by_hand(sequences), rel=1e-6)


def test_the_gate_computes_in_fp32(router: Make) -> None:
    """From bf16 activations and weights: what bf16 sums would lose decides between experts."""
    gate, x = router(normalize_top_k=False).to(torch.bfloat16), inputs(8, 32).bfloat16()
    logits = x.double() @ gate.weight.double().T
    top = logits.softmax(-1).topk(2, -1)
    routing = route(gate, x)
    assert routing.weights.dtype == torch.float32
    torch.testing.assert_close(
        routing.weights.double(), top.values.flatten(0, 1), rtol=1e-5, atol=1e-7
    )
    assert torch.equal(routing.experts, top.indices.flatten(0, 1))
    share = logits.softmax(-1).mean(1)
    counts = torch.nn.functional.one_hot(top.indices, 4).sum((1, 2)) / 64
    expected = (
        0.01 * 4 * (counts * share).sum() + 1e-3 * logits.logsumexp(-1).square().mean(1).sum()
    )
    torch.testing.assert_close(routing.aux.double(), expected, rtol=1e-5, atol=0)


def test_a_bias_step_by_hand(router: Make) -> None:
    gate = router(bias_update_rate=0.25)
    gate.after_update(torch.tensor([7, 1, 4, 4]))
    assert gate.bias.tolist() == [-0.25, 0.25, 0.0, 0.0]
    gate.after_update(torch.tensor([0, 0, 0, 1]))
    assert gate.bias.tolist() == [0.0, 0.5, 0.25, -0.25]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("logit", [-48.0, -90.0, -1e4])
def test_no_sum_of_scores_underflows(router: Make, score: str, logit: float) -> None:
    """Sigmoids of -48 gave weights that sum to 0.285, of -90 zeros and a loss that is no number."""
    gate = router(score=score, load_balance_weight=1.0, z_weight=0.0)
    gate.weight = torch.nn.Parameter(torch.zeros(4, 8))
    gate.weight.data[:, 0] = torch.tensor([logit, logit + 1, logit, logit])
    x = torch.zeros(1, 2, 8)
    x[..., 0] = 1
    routing = route(gate, x)
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(2))
    assert routing.aux > 0
    share = torch.tensor([1.0, torch.e, 1.0, 1.0]) / (3 + torch.e)
    expected = 4 * (routing.loads / 4 * share).sum()
    torch.testing.assert_close(routing.aux, expected, rtol=1e-5, atol=0)
    routing.aux.backward()
    assert gate.weight.grad is not None and torch.isfinite(gate.weight.grad).all()
