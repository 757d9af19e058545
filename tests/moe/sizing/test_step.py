"""The predicted step is the work over the rates, part by part."""

from dataclasses import dataclass, replace

import pytest
from drawn_models import models
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.moe.config import LayoutConfig, ModelConfig
from moelstrom.moe.sizing.communication import Traffic
from moelstrom.moe.sizing.counts import count_parameters, flops_per_token
from moelstrom.moe.sizing.curves import Curves, Gemm, Grouped
from moelstrom.moe.sizing.step import StepTime, TrainingWork, predict_step, token_seconds
from moelstrom.moe.sizing.work import expert_layers, products

RATE = 1e14
FLAT = Curves(
    label="one rate for all",
    gemms=(Gemm(1024, 1024, 1024, RATE),),
    experts=(Grouped(1024, 512, 512, 8, RATE),),
    attention=((1024, RATE),),
    memory_rate=1e30,
    capacity=2**40,
    peak=RATE,
)
NONE = Traffic(0.0, 0.0, 0.0)
TRAINING = TrainingWork(batch_tokens=2**20, seq_len=1024)


@dataclass(frozen=True)
class Fixed:
    """Communication that takes what it is told, and notes what it was asked."""

    traffic: Traffic = NONE
    label: str = "fixed"

    def predict(
        self, model: ModelConfig, layout: LayoutConfig, tokens: int, microbatches: int, again: bool
    ) -> Traffic:
        assert tokens * microbatches * layout.dp == TRAINING.batch_tokens
        return self.traffic


def step(
    model: ModelConfig,
    curves: Curves = FLAT,
    traffic: Traffic = NONE,
    dp: int = 4,
    micro_batch: int = 8,
    recompute: bool = False,
) -> StepTime:
    layout = LayoutConfig(dp=dp)
    return predict_step(model, layout, micro_batch, recompute, TRAINING, curves, Fixed(traffic))


@settings(deadline=None)
@given(model=models())
def test_at_one_rate_time_is_work(model: ModelConfig) -> None:
    curves = replace(FLAT, gemms=(Gemm(2**20, 2**20, 2**20, RATE),), memory_rate=1e30)
    found = step(model, curves)
    tokens = TRAINING.batch_tokens // 4
    dense = 3 * sum(p.count * p.flops for p in products(model, tokens))
    # The least cost of a launch that a curve knows is a thousand FLOPs.
    assert found.gemm == pytest.approx(dense / RATE, rel=1e-3)
    routed = sum(layer.count * layer.flops for layer in expert_layers(model, tokens))
    assert found.experts == pytest.approx(3 * routed / RATE, rel=1e-3)
    square = 2 * tokens * 1024 * model.num_heads * model.head_dim * model.num_layers
    assert found.attention == pytest.approx(3.5 * square / RATE)
    parts = found.gemm + found.experts + found.attention
    assert found.total == pytest.approx(parts, rel=1e-6)
    assert found.tokens_per_s == pytest.approx(TRAINING.batch_tokens / found.total)
    # Norms count as FLOPs of the model, which a tiny one shows.
    assert found.mfu <= 1.05
    flops = flops_per_token(model, 1024) * TRAINING.batch_tokens
    assert found.mfu == pytest.approx(flops / (found.total * 4 * RATE))


MODEL = ModelConfig(vocab_size=4096)


def test_recomputation_runs_the_forward_pass_again() -> None:
    plain, again = step(MODEL), step(MODEL, recompute=True)
    compute = plain.gemm + plain.experts + plain.attention
    assert again.recompute == pytest.approx(compute / 3, rel=1e-3)
    assert again.total == pytest.approx(plain.total + again.recompute)


def test_gradients_hide_behind_the_last_backward_pass_only() -> None:
    plain = step(MODEL)
    rounds = 2**20 // (8 * 1024 * 4)
    hidden = 2 / 3 * plain.total / rounds
    assert step(MODEL, traffic=Traffic(0.9 * hidden, 0, 0)).total == pytest.approx(plain.total)
    late = step(MODEL, traffic=Traffic(hidden + 1.0, 0, 0))
    assert late.reduce == pytest.approx(1.0, rel=1e-3)
    assert late.total == pytest.approx(plain.total + 1.0, rel=1e-3)
    loud = step(MODEL, traffic=Traffic(0, 2.0, 3.0))
    assert (loud.gather, loud.exchange) == (2.0, 3.0)
    assert loud.total == pytest.approx(plain.total + 5.0)


@settings(deadline=None)
@given(model=models(), rate=st.floats(1e9, 1e13))
def test_memory_time_falls_as_the_rate_rises(model: ModelConfig, rate: float) -> None:
    slow, fast = (step(model, replace(FLAT, memory_rate=r)) for r in (rate, 2 * rate))
    assert slow.memory == pytest.approx(2 * fast.memory) and slow.total > fast.total


def test_a_larger_micro_batch_sums_gradients_less_often() -> None:
    curves = replace(FLAT, memory_rate=1e12)
    small, large = (step(MODEL, curves, micro_batch=size) for size in (8, 16))
    rounds = 2**20 // (8 * 1024 * 4)
    saved = 10 * count_parameters(MODEL).total * rounds / 2 / 1e12
    assert small.memory - large.memory == pytest.approx(saved)


def test_a_token_reads_the_active_weights_and_its_cache() -> None:
    curves = replace(FLAT, memory_rate=1e12)
    counts = count_parameters(MODEL)
    weights = 2 * (counts.active - 4096 * 256)
    cache = 2 * 2 * (2 * 64) * 4 * 1000
    assert token_seconds(MODEL, 0, curves) == pytest.approx(weights / 1e12)
    assert token_seconds(MODEL, 1000, curves) == pytest.approx((weights + cache) / 1e12)
    tied = MODEL.model_copy(update={"tie_embeddings": True})
    assert token_seconds(tied, 0, curves) == pytest.approx(weights / 1e12)
