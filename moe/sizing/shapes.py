"""Model shapes that meet a budget of parameters."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import ModelConfig, MoEConfig
from .counts import Counts, count_parameters

TILE = 64
"""Widths are multiples of this (papers' rule: matrix units and tiles divide evenly)."""
EXPERTS = (8, 16, 32, 64, 128, 256)
TOP_K = (1, 2, 4, 8)
HEADS_PER_KV = 4
SPARSITY = 11.0
"""Total over active parameters where only one is given: ZAYA1's (8.3B / 760M)."""
TOKENS_PER_PARAMETER = 20.0
"""Training tokens for each active parameter, where a budget of FLOPs must be split: Hoffmann et al.
(arXiv 2203.15556) found it for dense models, and we take it for mixtures."""
ASPECT = (24, 200)
"""hidden size / layers; between them the loss is nearly flat (Kaplan et al., arXiv 2001.08361)."""
EXPERT_ASPECT = (1 / 8, 4)
"""Expert width / hidden size."""
TOLERANCE = 0.06
"""How far a shape may miss the budget."""


@dataclass(frozen=True)
class Budget:
    """Parameters without the tables (embedding and output projection), as ZAYA1's are counted."""

    total: float
    active: float


@dataclass(frozen=True)
class Fixed:
    """What the user decided; None is free."""

    hidden_size: int | None = None
    num_layers: int | None = None
    num_experts: int | None = None
    top_k: int | None = None
    head_dim: int | None = None


def flop_budget(flops: float, sparsity: float = SPARSITY) -> Budget:
    """The parameters that `flops` of training pay for: flops = 6 active tokens, with
    `TOKENS_PER_PARAMETER`."""
    active = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    return Budget(sparsity * active, active)


def without_tables(model: ModelConfig) -> Budget:
    """What a model's budget is."""
    counts = count_parameters(model)
    tables = _tables(model, counts)
    return Budget(counts.total - tables, counts.active - tables)


def _tables(model: ModelConfig, counts: Counts) -> int:
    return counts.embedding + model.vocab_size * model.hidden_size


def shapes(budget: Budget, vocab_size: int, fixed: Fixed) -> Iterator[ModelConfig]:
    """Every shape of the grid that meets the budget.

    With hidden size D, E experts and top-k given, total - active = 3 L (E - k) D F fixes the depth
    times the expert width, L F; what is left of the active parameters, attention's, fixes L.
    """
    for experts in _choice(fixed.num_experts, EXPERTS):
        for top_k in (k for k in _choice(fixed.top_k, TOP_K) if k < experts):
            for hidden in _choice(fixed.hidden_size, _hidden_sizes()):
                for share in (1.0, 0.5):
                    model = _shape(budget, vocab_size, fixed, experts, top_k, hidden, share)
                    if model is not None and _meets(model, budget):
                        yield model


def _choice(fixed: int | None, free: tuple[int, ...]) -> tuple[int, ...]:
    return free if fixed is None else (fixed,)


def _hidden_sizes() -> tuple[int, ...]:
    return *range(128, 1024, 64), *range(1024, 4096, 128), *range(4096, 16385, 512)


def _shape(
    budget: Budget,
    vocab_size: int,
    fixed: Fixed,
    experts: int,
    top_k: int,
    hidden: int,
    share: float,
) -> ModelConfig | None:
    """The shape nearest the budget whose queries are `share` of the hidden size wide; tables tied,
    as ZAYA1's."""
    head_dim = fixed.head_dim or (128 if hidden >= 1024 else 64)
    heads = _heads(hidden * share / head_dim)
    kv = max(1, heads // HEADS_PER_KV)
    depth_times_width = (budget.total - budget.active) / (3 * hidden * (experts - top_k))
    rest = budget.active - 3 * top_k * hidden * depth_times_width
    layer = hidden * (2 * (heads + kv) * head_dim + experts + 2)
    layers = fixed.num_layers or round(rest / layer)
    if layers < 1 or rest <= 0:
        return None
    width = max(TILE, TILE * round(depth_times_width / layers / TILE))
    if not _sound(hidden, layers, width, fixed):
        return None
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=head_dim,
        qk_norm=True,
        tie_embeddings=True,
        # One weight normalised is 1, whatever the router says: it would learn nothing.
        moe=MoEConfig(
            num_experts=experts, top_k=top_k, expert_size=width, normalize_top_k=top_k > 1
        ),
    )


def _heads(wanted: float) -> int:
    """The nearest number of heads that the KV heads divide."""
    if wanted < HEADS_PER_KV:
        return max(1, round(wanted))
    return HEADS_PER_KV * round(wanted / HEADS_PER_KV)


def _sound(hidden: int, layers: int, width: int, fixed: Fixed) -> bool:
    """Whether the proportions are usual; depth and hidden size may be fixed to others."""
    pinned = fixed.hidden_size is not None or fixed.num_layers is not None
    aspect = pinned or ASPECT[0] <= hidden / layers <= ASPECT[1]
    return aspect and EXPERT_ASPECT[0] <= width / hidden <= EXPERT_ASPECT[1]


def _meets(model: ModelConfig, budget: Budget) -> bool:
    found = without_tables(model)
    pairs = (found.total, budget.total), (found.active, budget.active)
    return all(abs(got / wanted - 1) <= TOLERANCE for got, wanted in pairs)
