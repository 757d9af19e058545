"""Parameters and floating-point operations of a model."""

from dataclasses import dataclass

from ..config import ModelConfig
from ..model import layer_kinds


@dataclass(frozen=True)
class Counts:
    """Parameters: `total`; `active` for one token (all but the experts it skips); `experts`, the
    part of the total that expert parallelism splits; `embedding`, that of the input table alone
    (0 when it is tied, because the output projection then uses it)."""

    total: int
    active: int
    experts: int
    embedding: int


def count_parameters(config: ModelConfig) -> Counts:
    """Count the parameters of the model that `config` (with its vocabulary size) describes."""
    kinds = layer_kinds(config)
    width, moe = config.hidden_size, config.moe
    table = config.vocab_size * width
    mixers = len(kinds) * _attention(config)
    norms = width * (2 * len(kinds) + 1)
    dense = 3 * width * config.ffn_size * sum(ffn == "dense" for _, ffn in kinds)
    layers = sum(ffn == "moe" for _, ffn in kinds)
    router = layers * width * moe.num_experts
    shared = layers * 3 * width * moe.shared_expert_size
    expert = 3 * width * moe.expert_size
    tables = table if config.tie_embeddings else 2 * table
    rest = tables + mixers + norms + dense + router + shared
    experts = layers * moe.num_experts * expert
    return Counts(
        total=rest + experts,
        active=rest + layers * moe.top_k * expert,
        experts=experts,
        embedding=tables - table,
    )


def _attention(config: ModelConfig) -> int:
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    norms = 2 * config.head_dim if config.qk_norm else 0
    if config.qk_norm == "whole":
        norms = (config.num_heads + config.num_kv_heads) * config.head_dim
    return heads * config.head_dim * config.hidden_size + norms


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Forward and backward FLOPs of one token: 6 for each active parameter of a matrix product,
    and 6 S H d a layer for causal attention over full sequences (half of the square; document
    boundaries, which leave less, are not deducted; recomputation is not counted)."""
    counts = count_parameters(config)
    attention = 6 * seq_len * config.num_heads * config.head_dim * config.num_layers
    return 6.0 * (counts.active - counts.embedding) + attention
