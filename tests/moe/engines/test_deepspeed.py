"""The DeepSpeed engine trains as the native one does, and its checkpoints are the same."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from moelstrom import UserError
from moelstrom.moe.batch import IGNORE, Batch
from moelstrom.moe.build import build_model
from moelstrom.moe.checkpoint.reader import Reader, latest
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import (
    CheckpointConfig,
    EngineConfig,
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from moelstrom.moe.engines import EngineOptions, make_engine
from moelstrom.moe.engines.base import Engine
from moelstrom.moe.engines.deepspeed import check
from moelstrom.moe.layout import Groups

VOCAB, LENGTH, SEQUENCES = 40, 16, 8
MODEL = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    # Odd sizes make DeepSpeed pad and cut parameters.
    pattern=("attention/dense", "attention/moe"),
    ffn_size=25,
    qk_norm=True,
    moe=MoEConfig(num_experts=4, top_k=2, expert_size=8, bias_update_rate=1e-2),
)
TIED = MODEL.model_copy(update={"tie_embeddings": True})
LAYOUTS = ((1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2))
"""(ep, zero) on two ranks."""


def options(
    engine: str,
    ep: int,
    zero: int,
    precision: str = "fp32",
    optimizer: str = "adamw",
    recompute: bool = False,
) -> EngineOptions:
    return EngineOptions(
        engine=EngineConfig(name=engine, precision=precision, bucket_mb=1, recompute=recompute),
        layout=LayoutConfig(dp=dist.get_world_size(), ep=ep, zero=zero),
        optimizer=OptimizerConfig(name=optimizer, lr=5e-3, clip_grad=0.5),
        schedule=ScheduleConfig(warmup_steps=2),
        steps=30,
    )


def microbatches(step: int) -> list[Batch]:
    """This rank's share of a step's 8 sequences; odd steps come in more micro-batches, and the
    ranks' numbers of targets differ."""
    g = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB, (SEQUENCES, LENGTH + 1), generator=g)
    tokens[:, 1::2] = tokens[:, :-1:2]
    targets = tokens[:, 1:].clone()
    targets[0, 3] = targets[5, :7] = IGNORE
    documents = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int32)
    share = SEQUENCES // dist.get_world_size()
    first, rows = dist.get_rank() * share, 1 if step % 2 else 2
    return [
        Batch(tokens[i : i + rows, :-1], targets[i : i + rows], documents[i : i + rows])
        for i in range(first, first + share, rows)
    ]


def start(opts: EngineOptions, model: ModelConfig = MODEL) -> Engine:
    groups = Groups(opts.layout)
    engine = make_engine(opts, groups)
    engine.setup(torch.device("cpu"))
    engine.build(build_model(model, groups, seed=1, recompute=opts.engine.recompute))
    return engine


def curve(opts: EngineOptions, model: ModelConfig = MODEL, steps: int = 20) -> torch.Tensor:
    """Loss and gradient norm of each step, then a validation loss."""
    engine = start(opts, model)
    rows = []
    for i in range(steps):
        metrics = engine.step(microbatches(i))
        rows.append([metrics.loss, metrics.grad_norm])
    total, count = engine.evaluate(microbatches(99))
    return torch.tensor([*rows, [total / count, 0.0]])


def curves(precision: str) -> dict[tuple, torch.Tensor]:
    found = {("native", 1, 1): curve(options("native", 1, 1, precision))}
    for ep, zero in LAYOUTS:
        found["deepspeed", ep, zero] = curve(options("deepspeed", ep, zero, precision))
    return found
