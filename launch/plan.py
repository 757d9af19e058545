"""What a run would be: sizes, memory and placement, before anything starts."""

from dataclasses import asdict, dataclass
from typing import Any

from ..cluster.placement import Slot, describe_placement
from ..moe.config import ModelConfig
from ..moe.sizing.counts import Counts, count_parameters, flops_per_token
from .config import RunConfig
from .data.config import microbatches
from .data.tokenizer import load_tokenizer
from .loop import sized

GIB = 2**30


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


@dataclass(frozen=True)
class Plan:
    """The dry run's facts. `flops_per_token` counts forward and backward passes."""

    model: ModelConfig
    parameters: Counts
    memory: Memory
    microbatches: int
    tokens_per_step: int
    flops_per_token: float
    placement: list[Slot]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "parameters": asdict(self.parameters),
            "memory_per_rank_bytes": {**asdict(self.memory), "total": self.memory.total},
            "microbatches_per_step": self.microbatches,
            "tokens_per_step": self.tokens_per_step,
            "flops_per_token": self.flops_per_token,
            "placement": [asdict(slot) for slot in self.placement],
        }


def make_plan(config: RunConfig) -> Plan:
    """Plan a run without starting it (with `cluster.address` it looks at that cluster)."""
    model = sized(config.model, load_tokenizer(config.data.tokenizer).vocab_size)
    counts = count_parameters(model)
    data = config.data
    return Plan(
        model=model,
        parameters=counts,
        memory=estimate_memory(config, model, counts),
        microbatches=microbatches(data.global_batch_size, data.micro_batch_size, config.layout.dp),
        tokens_per_step=data.global_batch_size * data.seq_len,
        flops_per_token=flops_per_token(model, data.seq_len),
        placement=describe_placement(config.layout.world_size, config.cluster),
    )


def estimate_memory(config: RunConfig, model: ModelConfig, counts: Counts) -> Memory:
    """Bytes of one rank under the layout's expert parallelism and ZeRO stage."""
    layout, zero = config.layout, config.layout.zero
    dense = counts.total - counts.experts
    experts = counts.experts // layout.ep
    # Experts have copies on dp / ep ranks, everything else on dp ranks.
    sharded = dense // layout.dp + experts // (layout.dp // layout.ep)
    whole = dense + experts
    width = 2 if config.engine.precision == "bf16" else 4
    moments = 4 if config.optimizer.name == "muon" else 8
    return Memory(
        weights=width * (sharded if zero == 3 else whole),
        gradients=4 * (sharded if zero >= 2 else whole),
        optimizer=(4 + moments) * (sharded if zero >= 1 else whole),
        activations=_activations(config, model, width),
    )


def _activations(config: RunConfig, model: ModelConfig, width: int) -> int:
    tokens = config.data.micro_batch_size * config.data.seq_len
    logits = 2 * 4 * tokens * model.vocab_size
    hidden = tokens * model.hidden_size * width
    if config.engine.recompute:
        return logits + hidden * (model.num_layers + 1) + _layer(model, tokens, width)
    return logits + model.num_layers * _layer(model, tokens, width)


def _layer(model: ModelConfig, tokens: int, width: int) -> int:
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    moe = model.moe
    expert = moe.top_k * (4 * moe.expert_size + 2 * model.hidden_size)
    ffn = expert if any(p.endswith("/moe") for p in model.pattern) else 4 * model.ffn_size
    return tokens * width * (6 * model.hidden_size + heads + ffn)
