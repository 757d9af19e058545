"""Small checkpoints of a synthetic state, and damage to them, for the tests of reshaping."""

from pathlib import Path
from typing import Any

from moelstrom.moe.checkpoint.layouts.holdings import holdings
from moelstrom.moe.checkpoint.layouts.layout import make_target
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.reshape.plan import ReshapePlan, make_plan
from moelstrom.moe.checkpoint.reshape.run import reshape
from moelstrom.moe.checkpoint.reshape.synthetic import Synthetic
from moelstrom.moe.config import ModelConfig, MoEConfig, OptimizerConfig
from moelstrom.moe.state.source import Source

MODEL = ModelConfig(
    vocab_size=96,
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffn_size=24,
    pattern=("attention/dense", "attention/moe"),
    qk_norm=True,
    moe=MoEConfig(num_experts=4, expert_size=8, shared_expert_size=8),
)


def synthetic(folder: Path, model: ModelConfig = MODEL, optimizer: str = "adamw") -> Synthetic:
    """A source that needs no files; `folder` must exist."""
    return Synthetic(folder, model, OptimizerConfig(name=optimizer))


def plan_for(source: Source, **layout: Any) -> ReshapePlan:
    """A plan of two readers and small chunks, so that tensors take several."""
    model = ModelConfig.model_validate(source.meta["model"])
    optimizer = OptimizerConfig.model_validate(source.meta["config"]["optimizer"])
    held = holdings(source.tensors, model, make_target(**layout), optimizer)
    plan = make_plan(source, held, readers=2)
    return ReshapePlan(source, plan.parts, plan.world_size, plan.readers, chunk=1024)


def reshaped(source: Source, out: Path, **layout: Any) -> Reader:
    """The source's state in another layout under `out`."""
    return Reader(reshape(plan_for(source, **layout), out))


def flip(file: Path, position: int) -> None:
    """Flip one bit of the byte at `position`."""
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)
