"""The products add up to the FLOPs that the model is counted with."""

import pytest
from drawn_models import models
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.moe.config import ModelConfig
from moelstrom.moe.model import layer_kinds
from moelstrom.moe.sizing.counts import flops_per_token
from moelstrom.moe.sizing.products import expert_layer, expert_shapes, gemm_shapes, products


@settings(deadline=None)
@given(model=models(), tokens=st.integers(1, 4096), length=st.integers(1, 4096))
def test_products_are_all_flops_but_attentions_own(
    model: ModelConfig, tokens: int, length: int
) -> None:
    layer = expert_layer(model, tokens)
    forward = sum(p.count * p.flops for p in products(model, tokens))
    forward += layer.count * layer.flops if layer else 0
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
    whole, half = expert_layer(model, tokens), expert_layer(model, tokens, 2)
    if whole is None or half is None:
        assert all(ffn == "dense" for _, ffn in layer_kinds(model))
        assert expert_shapes(model, tokens) == []
        return
    assert half.rows == whole.rows == tokens * model.moe.top_k
    assert half.experts == whole.experts // 2
    assert expert_shapes(model, tokens) == [
        (whole.rows, model.hidden_size, model.moe.expert_size, model.moe.num_experts)
    ]
