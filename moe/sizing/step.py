"""The predicted time of a training step of the native engine, and of a token in inference.

Forward and backward products, experts and attention run at the rates of `curves`; everything else
moves bytes: the counts below are of the native engine's fused kernels. Experts are taken to be
balanced. The gradients' reduction overlaps the last micro-batch's backward pass; dispatch and
combine, and the gathering of weights, overlap nothing.
"""

from dataclasses import dataclass

from ..config import LayoutConfig, ModelConfig
from ..layers.costs import Costs
from ..model import head_costs
from .communication import Communication
from .counts import count_parameters, flops_per_token
from .curves import Curves
from .work import model_costs

BF16 = 2
BACKWARD = 2.0
"""Of the forward pass's moved bytes that the backward pass moves."""
ATTENTION_BACKWARD = 3.5
"""Forward + backward over forward, as the benchmark counts attention."""
GRADIENT_BYTES = 10
"""A parameter's gradient is read in bf16 and added to an fp32 sum."""
UPDATE_BYTES = 4 * (3 + 4) + 4 + BF16
"""AdamW in fp32: gradient, master and two moments read, three written; the sum cleared, the weight
written."""


@dataclass(frozen=True)
class TrainingWork:
    """One step's work: `batch_tokens` over all ranks, in sequences of `seq_len`."""

    batch_tokens: int
    seq_len: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on a rank, by what it waits for. `exchange` is dispatch and
    combine, `reduce` what of the gradients' reduction no backward pass hides, `gather` the updated
    weights. `total`; tokens/s over all ranks; MFU of the curves' peak."""

    gemm: float
    experts: float
    attention: float
    memory: float
    recompute: float
    exchange: float
    reduce: float
    gather: float
    total: float
    tokens_per_s: float
    mfu: float


def predict_step(
    model: ModelConfig,
    layout: LayoutConfig,
    micro_batch: int,
    recompute: bool,
    training: TrainingWork,
    curves: Curves,
    communication: Communication,
) -> StepTime:
    """Predict a step with `micro_batch` sequences a rank at once (bf16, AdamW, ZeRO-1)."""
    tokens = micro_batch * training.seq_len
    rounds = training.batch_tokens // (tokens * layout.dp)
    costs = model_costs(model, tokens, training.seq_len, layout.ep)
    gemm, experts = _gemm(costs, curves), _experts(costs, curves)
    attention = ATTENTION_BACKWARD * costs.mixing_flops / curves.attend(training.seq_len)
    moved = _moved(model, costs, tokens) / curves.memory_rate
    again = (gemm + experts + attention + moved) / 3 if recompute else 0.0
    traffic = communication.predict(model, layout, tokens, rounds, recompute)
    update = _update_bytes(model, layout, rounds) / curves.memory_rate
    compute = rounds * (gemm + experts + attention + moved + again)
    exposed = max(0.0, traffic.gradients - 2 / 3 * compute / rounds)
    total = compute + update + traffic.tokens + exposed + traffic.weights
    flops = flops_per_token(model, training.seq_len) * training.batch_tokens
    return StepTime(
        gemm=rounds * gemm,
        experts=rounds * experts,
        attention=rounds * attention,
        memory=rounds * moved + update,
        recompute=rounds * again,
        exchange=traffic.tokens,
        reduce=exposed,
        gather=traffic.weights,
        total=total,
        tokens_per_s=training.batch_tokens / total,
        mfu=flops / (total * layout.dp * curves.peak),
    )


def _gemm(costs: Costs, curves: Curves) -> float:
    """Dense products of both passes."""
    whole = [q for p in costs.products for q in (p, *p.backward())]
    return sum(q.count * q.flops / curves.gemm(q.m, q.n, q.k) for q in whole)


def _experts(costs: Costs, curves: Curves) -> float:
    return sum(
        layer.count
        * 3
        * layer.flops
        / curves.grouped(layer.rows, layer.hidden, layer.width, layer.experts)
        for layer in costs.experts
    )


def _moved(model: ModelConfig, costs: Costs, tokens: int) -> float:
    """Bytes of both passes outside of products and attention; the loss's are of both already."""
    loss = head_costs(model, tokens).moved
    return BF16 * ((costs.moved - loss) * (1 + BACKWARD) + loss)


def _update_bytes(model: ModelConfig, layout: LayoutConfig, rounds: int) -> float:
    """Gradients summed each round, and the rank's shard updated once."""
    counts = count_parameters(model)
    dense, experts = counts.total - counts.experts, counts.experts / layout.ep
    shard = dense / layout.dp + experts / (layout.dp // layout.ep)
    return rounds * GRADIENT_BYTES * (dense + experts) + UPDATE_BYTES * shard


def token_seconds(model: ModelConfig, context: int, curves: Curves) -> float:
    """Inference: a token of one sequence with `context` tokens behind it reads every active
    weight and what those tokens left (keys, values, states) once (bf16), at the memory's rate."""
    counts = count_parameters(model)
    cache = model_costs(model, 1, context).state
    return BF16 * (counts.active - counts.embedding + cache) / curves.memory_rate
