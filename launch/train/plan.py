"""What a run would be: sizes, memory and placement, before anything starts."""

from dataclasses import asdict, dataclass
from typing import Any

from ...cluster.placement import Slot, describe_placement
from ...moe.config import ModelConfig
from ...moe.sizing.counts import Counts, count_parameters, flops_per_token
from ...moe.sizing.memory import Memory, estimate_memory
from ...moe.vocabulary import sized
from ..config import RunConfig
from ..data.config import microbatches
from ..data.tokenizer import load_tokenizer
from .elastic import allowed_sizes

GIB = 2**30


@dataclass(frozen=True)
class RunPlan:
    """The dry run's facts. `flops_per_token` counts forward and backward passes."""

    model: ModelConfig
    parameters: Counts
    memory: Memory
    microbatches: int
    tokens_per_step: int
    flops_per_token: float
    placement: list[Slot]
    world_sizes: tuple[int, ...]
    """Numbers of ranks that the run may go on with, its own first."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "parameters": asdict(self.parameters),
            "memory_per_rank_bytes": {**asdict(self.memory), "total": self.memory.total},
            "microbatches_per_step": self.microbatches,
            "tokens_per_step": self.tokens_per_step,
            "flops_per_token": self.flops_per_token,
            "world_sizes": list(self.world_sizes),
            "placement": [asdict(slot) for slot in self.placement],
        }


def make_plan(config: RunConfig) -> RunPlan:
    """Plan a run without starting it (with `cluster.address` it looks at that cluster)."""
    model = sized(config.model, load_tokenizer(config.data.tokenizer).vocab_size)
    counts = count_parameters(model)
    data = config.data
    return RunPlan(
        model=model,
        parameters=counts,
        memory=estimate_memory(
            model,
            config.layout,
            config.engine,
            config.optimizer,
            data.micro_batch_size * data.seq_len,
        ),
        microbatches=microbatches(data.global_batch_size, data.micro_batch_size, config.layout.dp),
        tokens_per_step=data.global_batch_size * data.seq_len,
        flops_per_token=flops_per_token(model, data.seq_len),
        placement=describe_placement(config.layout.world_size, config.cluster),
        world_sizes=allowed_sizes(config),
    )
