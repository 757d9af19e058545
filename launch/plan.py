"""What a run would be: sizes, memory and placement, before anything starts."""

from dataclasses import asdict, dataclass
from typing import Any

from ..cluster.placement import Slot, describe_placement
from ..moe.config import ModelConfig
from ..moe.model import layer_kinds
from ..moe.sizing.counts import Counts, count_parameters, flops_per_token
from .config import RunConfig
from .data.config import microbatches
from .data.tokenizer import load_tokenizer
from .loop import sized

GIB = 2**30
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
    """Bytes of one rank under the layout's expert parallelism and ZeRO stage, without the padding
    of the shards."""
    layout, zero = config.layout, config.layout.zero
    dense, experts = counts.total - counts.experts, counts.experts // layout.ep
    # Experts have copies on dp / ep ranks, everything else on dp ranks.
    copies = layout.dp // layout.ep
    whole, shard = dense + experts, dense // layout.dp + experts // copies
    gradients = shard if zero >= 2 else whole
    if config.engine.name == "native" and zero:
        # The bucket that all gradients fill, and beside it the shard that is reduced into.
        gradients += sum(n // c for n, c in ((dense, layout.dp), (experts, copies)) if c > 1)
    width = WIDTHS[config.engine.precision]
    return Memory(
        weights=width * (shard if zero == 3 else whole),
        gradients=4 * gradients,
        optimizer=_optimizer(config, model, counts, shard if zero else whole),
        activations=_activations(config, model, width),
    )


def _optimizer(config: RunConfig, model: ModelConfig, counts: Counts, held: int) -> int:
    """Bytes of fp32 master weights and moments for `held` parameters: AdamW has two moments, Muon
    one, but not for the tables."""
    # DeepSpeed without ZeRO updates fp32 weights where they are.
    in_place = config.engine.name == "deepspeed" and config.engine.precision == "fp32"
    master = 0 if in_place and not config.layout.zero else 4
    if config.optimizer.name == "adamw":
        return (master + 8) * held
    tables = counts.embedding + model.vocab_size * model.hidden_size
    return (master + 4) * held + 4 * (tables // (config.layout.dp if config.layout.zero else 1))


def _activations(config: RunConfig, model: ModelConfig, width: int) -> int:
    tokens = config.data.micro_batch_size * config.data.seq_len
    logits = 2 * 4 * tokens * model.vocab_size
    layers = [_layer(model, ffn) * tokens * width for _, ffn in layer_kinds(model)]
    if config.engine.recompute:
        hidden = tokens * model.hidden_size * width
        return logits + hidden * (model.num_layers + 1) + max(layers)
    return logits + sum(layers)


def _layer(model: ModelConfig, ffn: str) -> int:
    """Elements that one token leaves in a layer for the backward pass."""
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    moe = model.moe
    experts = moe.top_k * (4 * moe.expert_size + 2 * model.hidden_size) + 4 * moe.shared_expert_size
    return 6 * model.hidden_size + heads + (experts if ffn == "moe" else 4 * model.ffn_size)
