"""Parameters and floating-point operations of a model."""

from dataclasses import dataclass

from ..config import ModelConfig
from .work import layer_specs, model_costs


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
    table = config.vocab_size * config.hidden_size
    rest = config.hidden_size + (table if config.tie_embeddings else 2 * table)
    total = active = experts = 0
    for spec, count in layer_specs(config):
        total += count * spec.numel
        active += count * spec.active
        experts += count * spec.numel if spec.experts else 0
    unused = 0 if config.tie_embeddings else table
    return Counts(rest + total, rest + active, experts, unused)


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Forward and backward FLOPs of one token: 6 for each active parameter of a matrix product,
    and three times the forward FLOPs of what mixes tokens (causal attention over full sequences:
    6 S H d a layer, half of the square; recomputation is not counted)."""
    counts = count_parameters(config)
    mixing = 3 * model_costs(config, 1, seq_len).mixing_flops
    return 6.0 * (counts.active - counts.embedding) + mixing
