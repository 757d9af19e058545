"""Memory of one rank in training, before anything is allocated."""

from dataclasses import dataclass

from ..config import EngineConfig, LayoutConfig, ModelConfig, OptimizerConfig
from ..engines import ENGINES
from .counts import Counts, count_parameters
from .work import layer_costs, most_saved

WIDTHS = {"fp32": 4, "bf16": 2}
"""Bytes of a weight or an activation."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one rank. Activations are a bound from below: what the backward pass
    needs of one micro-batch, without the allocator's slack and kernels' workspaces."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    model: ModelConfig,
    layout: LayoutConfig,
    engine: EngineConfig,
    optimizer: OptimizerConfig,
    tokens: int,
) -> Memory:
    """Bytes of one rank under the layout's expert parallelism and ZeRO stage, without the padding
    of the shards; `tokens` of a micro-batch."""
    counts, zero = count_parameters(model), layout.zero
    dense, experts = counts.total - counts.experts, counts.experts // layout.ep
    # Experts have copies on dp / ep ranks, everything else on dp ranks.
    copies = layout.dp // layout.ep
    whole, shard = dense + experts, dense // layout.dp + experts // copies
    gradients = shard if zero >= 2 else whole
    if ENGINES[engine.name].reduces_apart and zero:
        # The buffer that all gradients fill, and beside it the shard that is reduced into.
        gradients += sum(n // c for n, c in ((dense, layout.dp), (experts, copies)) if c > 1)
    width = WIDTHS[engine.precision]
    return Memory(
        weights=width * (shard if zero == 3 else whole),
        gradients=4 * gradients,
        optimizer=_optimizer(engine, layout, optimizer, model, counts, shard if zero else whole),
        activations=_activations(engine, model, tokens, width),
    )


def _optimizer(
    engine: EngineConfig,
    layout: LayoutConfig,
    optimizer: OptimizerConfig,
    model: ModelConfig,
    counts: Counts,
    held: int,
) -> int:
    """Bytes of fp32 master weights and moments for `held` parameters: AdamW has two moments, Muon
    one, but not for the tables."""
    in_place = ENGINES[engine.name].updates_in_place(layout.zero, engine.precision)
    master = 0 if in_place else 4
    if optimizer.name == "adamw":
        return (master + 8) * held
    tables = counts.embedding + model.vocab_size * model.hidden_size
    return (master + 4) * held + 4 * (tables // (layout.dp if layout.zero else 1))


def _activations(engine: EngineConfig, model: ModelConfig, tokens: int, width: int) -> int:
    logits = 2 * 4 * tokens * model.vocab_size
    if engine.recompute:
        hidden = tokens * model.hidden_size
        return logits + width * (hidden * (model.num_layers + 1) + most_saved(model, tokens))
    return logits + width * sum(costs.saved for costs in layer_costs(model, tokens, 0))
