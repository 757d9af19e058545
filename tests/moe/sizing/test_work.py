"""The products add up to the FLOPs that the model is counted with."""

import pytest
from drawn_models import models
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.moe.config import ModelConfig, layer_kinds
from moelstrom.moe.sizing.counts import flops_per_token
from moelstrom.moe.sizing.work import expert_layers, expert_shapes, gemm_shapes, products


@settings(deadline=None)
@given(model=models(), tokens=st.integers(1, 4096), length=st.integers(1, 4096))
def test_products_are_all_flops_but_attentions_own(
    model: ModelConfig, tokens: int, length: int
) -> None:
    forward = sum(p.count * p.flops for p in products(model, tokens))
    forward += sum(layer.count * layer.flops for layer in expert_layers(model, tokens))
    norms = model.hidden_size * (2 * model.num_layers + 1)
    norms += 2 * model.head_dim * model.num_layers if model.qk_norm else 0
    attention = 6 * length * model.num_heads * model.head_dim * model.num_layers
    counted = tokens * (flops_per_token(model, length) - attention - 6 * norms)
    assert 3 * forward == pytest.approx(counted, rel=1e-12)


@settings(deadline=None)
@given(model=models(), tokens=st.integers(1, 4096))
def test_backward_products_are_those_of_both_gradients(model: ModelConfig, tokens: int) -> None:
    for p in products(model, tokens):
        of_input, of_weight = p.backward()
        assert (of_input.m, of_input.n) == (p.m, p.k) and (of_weight.m, of_weight.n) == (p.n, p.k)
        assert of_input.flops == of_weight.flops == p.flops
    names = [name for name, *_ in gemm_shapes(model, tokens)]
    assert len(names) == len(set(names)) == 3 * len(products(model, tokens))


@settings(deadline=None)
@given(model=models(), tokens=st.integers(1, 4096))
def test_expert_parallel_ranks_share_the_experts_and_keep_the_rows(
    model: ModelConfig, tokens: int
) -> None:
    layers, halves = expert_layers(model, tokens), expert_layers(model, tokens, 2)
    if not layers:
        assert all(kinds.ffn.kind == "dense" for kinds in layer_kinds(model))
        assert expert_shapes(model, tokens) == []
        return
    (whole,), (half,) = layers, halves
    assert half.rows == whole.rows == tokens * model.moe.top_k
    assert half.experts == whole.experts // 2
    assert expert_shapes(model, tokens) == [
        (whole.rows, model.hidden_size, model.moe.expert_size, model.moe.num_experts)
    ]
