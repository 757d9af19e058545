"""The package's side of the oracles: an engine on given weights, one step, the state after it.

Everything that these tests know of the engines' interface is here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from reference_model import IGNORED, Shape, Weights

from moelstrom.moe.batch import Batch
from moelstrom.moe.config import (
    EngineConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from moelstrom.moe.engines import EngineOptions, make_engine
from moelstrom.moe.engines.base import Engine, StepMetrics
from moelstrom.moe.grid import Grid
from moelstrom.moe.state.source import TensorInfo


@dataclass(frozen=True)
class Run:
    """What shapes a step besides the model."""

    engine: str = "native"
    ep: int = 1
    zero: int = 1
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    steps: int = 40
    recompute: bool = False


@dataclass(frozen=True)
class Data:
    """Sequences [B, S] with ignored targets and several documents."""

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor

    def rows(self, first: int, end: int) -> "Data":
        return Data(self.tokens[first:end], self.targets[first:end], self.documents[first:end])


def data(seed: int, shape: Shape, sequences: int = 4, length: int = 11) -> Data:
    """A third of the targets is ignored, and unevenly: rows differ."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(shape.vocab, (sequences, length), generator=generator)
    targets = torch.randint(shape.vocab, (sequences, length), generator=generator)
    targets[0, 2] = targets[-1, :7] = IGNORED
    targets[1, -5:] = IGNORED
    ends = torch.rand(sequences, length, generator=generator) < 0.2
    return Data(tokens, targets, ends.cumsum(1).int())


def model_config(shape: Shape) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "vocab_size": shape.vocab,
            "hidden_size": shape.hidden,
            "num_layers": len(shape.layers),
            "num_heads": shape.heads,
            "num_kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "ffn_size": shape.ffn,
            "pattern": [f"attention/{kind}" for kind in shape.layers],
            "rope_theta": shape.theta,
            "rope_fraction": shape.rope_fraction,
            "qk_norm": shape.qk_norm,
            "norm_eps": shape.eps,
            "tie_embeddings": shape.tied,
            "moe": {
                "num_experts": shape.experts,
                "top_k": shape.top_k,
                "expert_size": shape.expert_size,
                "shared_expert_size": shape.shared,
                "score": shape.score,
                "normalize_top_k": shape.normalize,
                "load_balance_weight": shape.balance,
                "balance_scope": shape.scope,
                "z_weight": shape.z,
                "bias_update_rate": shape.bias_rate,
            },
        }
    )


class Memory:
    """Canonical tensors as a checkpoint of `step`, of whose steps `skipped` made no update."""

    folder = Path()

    def __init__(self, tensors: Weights, step: int, skipped: int) -> None:
        self._tensors, self.step, self.meta = tensors, step, {"skipped": skipped}
        self.tensors = {n: TensorInfo(torch.float32, tuple(t.shape)) for n, t in tensors.items()}

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        flat = self._tensors[name].float().flatten()
        return flat[offset:] if numel is None else flat[offset : offset + numel]


def start(shape: Shape, run: Run, state: Weights, step: int = 0, skipped: int = 0) -> Engine:
    """An engine that goes on from `state`, canonical tensors under their whole names."""
    layout = LayoutConfig(dp=dist.get_world_size(), ep=run.ep, zero=run.zero)
    options = EngineOptions(
        engine=EngineConfig(name=run.engine, bucket_mb=1, recompute=run.recompute),
        layout=layout,
        optimizer=OptimizerConfig(**run.optimizer),
        schedule=ScheduleConfig(**run.schedule),
        steps=run.steps,
    )
    engine = make_engine(options, Grid(layout))
    engine.setup(torch.device("cpu"))
    engine.build(model_config(shape), seed=0)
    engine.import_state(Memory(state, step, skipped))
    return engine


def micro(given: Data, rows: int) -> list[Batch]:
    """This rank's share of the sequences in micro-batches of `rows`."""
    share = len(given.tokens) // dist.get_world_size()
    first = dist.get_rank() * share
    parts = (given.rows(i, i + rows) for i in range(first, first + share, rows))
    return [Batch(part.tokens, part.targets, part.documents) for part in parts]


def step(engine: Engine, given: Data, rows: int) -> StepMetrics:
    return engine.step(micro(given, rows))


def exported(engine: Engine) -> Weights:
    """The whole canonical state, on every rank; collective."""
    mine = [(s.name, s.shape, s.offset, s.data.clone()) for s in engine.export_state()]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    whole: Weights = {}
    for name, size, offset, values in (piece for part in parts for piece in part):
        tensor = whole.setdefault(name, torch.full(size, torch.nan, dtype=torch.float64))
        tensor.view(-1)[offset : offset + values.numel()] = values.double()
    return whole
