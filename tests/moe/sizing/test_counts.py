"""Sizes and costs from the configuration agree with the model that it builds."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from moelstrom.moe.batch import Batch
from moelstrom.moe.build import build_model
from moelstrom.moe.config import LayoutConfig, ModelConfig, MoEConfig
from moelstrom.moe.grid import Grid
from moelstrom.moe.sizing.counts import Counts, count_parameters, flops_per_token


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Grid(LayoutConfig())
    dist.destroy_process_group()


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    def number(high: int, times: int = 1) -> int:
        return times * draw(st.integers(1, high))

    kv_heads, experts = number(2), number(5)
    entries = st.lists(st.sampled_from(["attention/dense", "attention/moe"]), min_size=1)
    return ModelConfig(
        vocab_size=number(40),
        hidden_size=number(3, times=8),
        num_layers=number(4),
        num_heads=number(2, times=kv_heads),
        num_kv_heads=kv_heads,
        head_dim=number(4, times=2),
        ffn_size=number(20),
        pattern=tuple(draw(entries)),
        qk_norm=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        moe=MoEConfig(
            num_experts=experts,
            top_k=draw(st.integers(1, experts)),
            expert_size=number(3, times=8),
            shared_expert_size=draw(st.sampled_from([0, 5, 8])),
        ),
    )


@settings(max_examples=150, deadline=None)
@given(config=models())
def test_counts_equal_the_built_model(grid: Grid, config: ModelConfig) -> None:
    model = build_model(config, grid, seed=0)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for local, p in model.parameters_here() if local.expert)
    used = experts * config.moe.top_k // config.moe.num_experts
    unused_table = 0 if config.tie_embeddings else model.embedding.numel()
    expected = Counts(total, total - experts + used, experts, unused_table)
    assert count_parameters(config) == expected


def test_counts_by_hand() -> None:
    config = ModelConfig(
        vocab_size=100,
        hidden_size=16,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        ffn_size=20,
        pattern=("attention/dense", "attention/moe"),
        qk_norm=True,
        moe=MoEConfig(num_experts=4, top_k=2, expert_size=8, shared_expert_size=24),
    )
    tables = 2 * 100 * 16
    attention = 24 * 16 + 12 * 16 + 12 * 16 + 16 * 24 + 6 + 6
    norms = 7 * 16
    dense = 3 * 16 * 20
    router, shared, expert = 4 * 16, 3 * 16 * 24, 3 * 16 * 8
    # Layers 0 and 2 are dense, layer 1 has the experts.
    rest = tables + 3 * attention + norms + 2 * dense + router + shared
    expected = Counts(rest + 4 * expert, rest + 2 * expert, 4 * expert, 1600)
    assert count_parameters(config) == expected
    assert count_parameters(config.model_copy(update={"tie_embeddings": True})) == Counts(
        rest + 4 * expert - 1600, rest + 2 * expert - 1600, 4 * expert, 0
    )


DENSE = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=24,
    pattern=("attention/dense",),
)


@pytest.mark.parametrize("tied", [False, True])
def test_flops_equal_the_products_that_run(grid: Grid, tied: bool) -> None:
    """Everything but attention's own products, which only some kernels report."""
    config = DENSE.model_copy(update={"tie_embeddings": tied})
    model = build_model(config, grid, seed=0)
    tokens = torch.randint(0, 40, (2, 12))
    with FlopCounterMode(display=False) as counter:
        batch = Batch(tokens, tokens, torch.zeros(2, 12, dtype=torch.int32))
        model(batch).loss_sum.backward()
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm] / tokens.numel()
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    attention = 6 * 12 * (4 * 8) * 2
    assert flops_per_token(config, 12) == products + 6 * norms + attention


def test_only_chosen_experts_cost_flops() -> None:
    moe = MoEConfig(num_experts=8, top_k=2, expert_size=8)
    config = DENSE.model_copy(update={"pattern": ("attention/moe",), "moe": moe})
    more = moe.model_copy(update={"top_k": 3})
    extra = flops_per_token(config.model_copy(update={"moe": more}), 12)
    assert extra - flops_per_token(config, 12) == 6 * 2 * (3 * 16 * 8)
    wide = moe.model_copy(update={"num_experts": 16})
    extra = flops_per_token(config.model_copy(update={"moe": wide}), 12)
    assert extra - flops_per_token(config, 12) == 6 * 2 * (8 * 16)
