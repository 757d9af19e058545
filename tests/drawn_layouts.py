"""Small models with layouts that they allow, drawn at random."""

import math

import torch
from hypothesis import strategies as st

from moelstrom.moe.checkpoint.layouts.layout import StateLayout
from moelstrom.moe.checkpoint.layouts.parameters import Skeleton
from moelstrom.moe.config import ModelConfig, MoEConfig, OptimizerConfig
from moelstrom.moe.optim.rules import STATE, rule
from moelstrom.moe.state.source import TensorInfo

PATTERNS = ("attention/moe",), ("attention/dense",), ("attention/dense", "attention/moe")


@st.composite
def small_models(draw: st.DrawFn) -> ModelConfig:
    """A few thousand elements; sizes with many divisors, so that tensor parallelism has room."""
    kv = draw(st.sampled_from((1, 2, 3, 4)))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 30)),
        hidden_size=8,
        num_layers=draw(st.integers(1, 5)),
        num_heads=kv * draw(st.sampled_from((1, 2, 4))),
        num_kv_heads=kv,
        head_dim=2 * draw(st.integers(1, 3)),
        ffn_size=draw(st.sampled_from((8, 12, 24, 7))),
        pattern=draw(st.sampled_from(PATTERNS)),
        qk_norm=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        moe=MoEConfig(
            num_experts=draw(st.sampled_from((1, 2, 4, 6))),
            top_k=1,
            expert_size=draw(st.sampled_from((8, 24))),
            shared_expert_size=draw(st.sampled_from((0, 24))),
        ),
    )


@st.composite
def targets(draw: st.DrawFn, model: ModelConfig, optimizer: OptimizerConfig) -> StateLayout:
    """Any layout that the model and the optimizer allow, of up to 144 ranks."""
    pp = draw(st.integers(1, min(3, model.num_layers)))
    tp = draw(st.sampled_from([tp for tp in range(1, 9) if _splits(model, tp)]))
    ep = draw(st.sampled_from([ep for ep in (1, 2, 3) if model.moe.num_experts % ep == 0]))
    engine = draw(st.sampled_from(("native", "deepspeed", "megatron")))
    zero = draw(st.sampled_from(_stages(engine, optimizer.name, ep, pp)))
    dp, cp = ep * draw(st.integers(1, 2)), draw(st.sampled_from((1, 1, 2)))
    return StateLayout(engine=engine, dp=dp, ep=ep, tp=tp, pp=pp, cp=cp, zero=zero, bucket_mb=1)


def _splits(model: ModelConfig, tp: int) -> bool:
    kv, moe = model.num_kv_heads, model.moe
    sizes = model.num_heads, model.ffn_size, moe.expert_size, moe.shared_expert_size
    return (kv % tp == 0 or tp % kv == 0) and math.gcd(*sizes) % tp == 0


def _stages(engine: str, optimizer: str, ep: int, pp: int) -> tuple[int, ...]:
    if engine != "deepspeed":
        return 0, 1
    if optimizer == "muon":
        return (0,)
    if pp > 1:
        return 0, 1
    return (0, 1, 2) if ep > 1 else (0, 1, 2, 3)


def tensors_of(model: ModelConfig, optimizer: OptimizerConfig) -> dict[str, TensorInfo]:
    """What a checkpoint of the model holds, with the random state of three ranks."""
    whole = Skeleton(model)
    shapes = {f"model/{name}": spec.shape for name, spec in whole.buffers}
    for p in whole.parameters:
        update = rule(p.spec, optimizer)
        for t in p.logicals():
            for prefix in ("model", *(f"{update}/{key}" for key in STATE[update])):
                shapes[f"{prefix}/{t.name}"] = t.shape
    found = {name: TensorInfo(torch.float32, shape) for name, shape in shapes.items()}
    random = {f"rng/{rank}/cpu": TensorInfo(torch.uint8, (17,)) for rank in range(3)}
    return found | random
