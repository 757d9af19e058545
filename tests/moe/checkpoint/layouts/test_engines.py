"""The maps of today's layouts are what the engines hold: exports and imports, range for range."""

import math
from dataclasses import dataclass, field

import engine_runs
import pytest
import torch
import torch.distributed as dist
from engine_runs import DEEPSPEED_LAYOUTS, Case
from ranks import run_ranks

from moelstrom.moe.checkpoint.layouts.holdings import holdings, needs
from moelstrom.moe.checkpoint.layouts.layout import StateLayout
from moelstrom.moe.config import ModelConfig, MoEConfig, OptimizerConfig
from moelstrom.moe.state.source import Slab, TensorInfo

SEVERAL_BUCKETS = ModelConfig(
    vocab_size=2500,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=22,
    pattern=("attention/moe", "attention/dense"),
    ffn_size=999,
    qk_norm=True,
    moe=MoEConfig(num_experts=4, expert_size=88, shared_expert_size=24, bias_update_rate=1e-3),
)
"""With buckets of 1 MiB the native engine needs several of each kind."""


@dataclass
class Recorder:
    """A source of zeros that remembers what was read of it."""

    tensors: dict[str, TensorInfo]
    step: int = 1
    reads: list[Slab] = field(default_factory=list)
    meta: dict[str, object] = field(default_factory=dict)

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        numel = math.prod(self.tensors[name].shape) if numel is None else numel
        self.reads.append(Slab(name, offset, numel))
        return torch.zeros(numel)


def exchange(cases: list[Case], model: ModelConfig) -> dict[Case, tuple[list, list[Slab]]]:
    """(name, shape, offset, elements) of what this rank exports, and the ranges it imports."""
    engine_runs.MODEL = model
    found = {}
    for case in cases:
        engine = engine_runs.start(case)
        exported = [(s.name, s.shape, s.offset, s.data.numel()) for s in engine.export_state()]
        everyones: list[list] = [[]] * dist.get_world_size()
        dist.all_gather_object(everyones, exported)
        shapes = {name: shape for part in everyones for name, shape, _, _ in part}
        source = Recorder({name: TensorInfo(torch.float32, s) for name, s in shapes.items()})
        engine.import_state(source)
        found[case] = exported, source.reads
    return found


def check(world: int, cases: list[Case], model: ModelConfig) -> None:
    ranks = run_ranks(world, exchange, cases, model)
    for case in cases:
        shapes = {name: shape for found in ranks for name, shape, _, _ in found[case][0]}
        tensors = {name: TensorInfo(torch.float32, shape) for name, shape in shapes.items()}
        target = StateLayout(engine=case.engine, dp=world, ep=case.ep, zero=case.zero, bucket_mb=1)
        maps = tensors, model, target, OptimizerConfig(name=case.optimizer)
        for rank, wanted in enumerate(holdings(*maps)):
            exported, imported = ranks[rank][case]
            assert sorted(Slab(n, at, size) for n, _, at, size in exported) == sorted(wanted), case
            assert sorted(imported) == sorted(needs(*maps, rank)), case


def cases(engine: str, layouts: tuple, optimizer: str = "adamw") -> list[Case]:
    return [Case(engine, ep, zero, optimizer=optimizer) for ep, zero in layouts]


NATIVE = [
    *cases("native", ((1, 0), (1, 1), (2, 0), (2, 1))),
    *cases("native", ((1, 0), (1, 1), (2, 0), (2, 1)), "muon"),
]


def test_native_on_two_ranks() -> None:
    check(2, NATIVE, SEVERAL_BUCKETS)


def test_deepspeed_on_two_ranks() -> None:
    muon = cases("deepspeed", ((1, 0), (2, 0)), "muon")
    check(2, [*cases("deepspeed", DEEPSPEED_LAYOUTS), *muon], SEVERAL_BUCKETS)


@pytest.mark.slow
def test_four_ranks() -> None:
    """Two copies of each expert; and DeepSpeed pads its groups beyond the ranks' number."""
    four = cases("deepspeed", ((1, 1), (1, 3), (2, 0), (2, 2), (4, 1)))
    check(4, [*NATIVE, *four], SEVERAL_BUCKETS)
