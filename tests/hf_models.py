"""Small models of every architecture, as checkpoints of ours, and their logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F

from moelstrom.moe.build import build_model
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig, LayoutConfig, ModelConfig, MoEConfig
from moelstrom.moe.grid import Grid
from moelstrom.moe.model import Model
from moelstrom.moe.state.names import buffer_shards, fill, fill_buffers, to_shards
from moelstrom.moe.state.shard import Shard

TOKENS = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(1))


def small(**fields: object) -> ModelConfig:
    base = ModelConfig(
        vocab_size=96,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_size=40,
        init_std=0.3,
        moe=MoEConfig(num_experts=4, top_k=2, expert_size=16),
    )
    return ModelConfig.model_validate({**base.model_dump(), **fields})


MODELS = {
    "mixtral": small(head_dim=16, rope_theta=5e5),
    "mixtral-tied": small(tie_embeddings=True),
    "olmoe": small(
        qk_norm="whole",
        norm_eps=1e-5,
        moe=MoEConfig(num_experts=4, top_k=3, expert_size=16, normalize_top_k=False),
    ),
    "qwen3_moe": small(
        qk_norm=True,
        head_dim=16,
        pattern=("attention/dense", "attention/moe"),
    ),
}


def jolt(model: Model) -> None:
    """Norm weights of one would hide a swapped or a forgotten norm."""
    generator = torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.uniform_(0.5, 1.5, generator=generator)


def save(config: ModelConfig, path: Path, bias: float = 0.0) -> torch.Tensor:
    """A checkpoint of step 5 of a new model in `path`, its first expert with a balancing bias;
    its logits of TOKENS."""
    with alone():
        model = build_model(config, Grid(LayoutConfig()), seed=3)
        jolt(model)
        for buffer in model.buffers():
            buffer[0] = bias
        _save(model, path)
        return logits(model)


@contextmanager
def alone() -> Iterator[None]:
    """A default group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _save(model: Model, path: Path) -> None:
    shards = buffer_shards(model)
    for local, p in model.parameters_here():
        flat = p.detach().reshape(-1)
        shards += to_shards("model", local.logicals(), 0, flat)
        shards += [Shard(f"adamw/exp_avg/{local.name}", (flat.numel(),), 0, torch.zeros_like(flat))]
    saver = Saver(CheckpointConfig(path=str(path)), 0, 1)
    run = {"data": {"seq_len": 24, "tokenizer": "byte"}}
    saver.save(
        5, shards, {"data": {}, "config": run, "model": model.config.model_dump(mode="json")}
    )
    saver.close()


def read_logits(folder: Path) -> torch.Tensor:
    """Logits of TOKENS of the model in a checkpoint of ours."""
    reader = Reader(folder)
    config = ModelConfig.model_validate(reader.meta["model"])
    with alone():
        model = build_model(config, Grid(LayoutConfig()), seed=4)
        for local, p in model.parameters_here():
            fill(reader, "model", local.logicals(), 0, p.data.view(-1))
        fill_buffers(reader, model)
        return logits(model)


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    """[B, S, V] of TOKENS, each row one document."""
    states, *_ = model.states(TOKENS, torch.zeros_like(TOKENS, dtype=torch.int32))
    return F.linear(states, model.projection)
