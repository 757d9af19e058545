"""The maps for Megatron are its own: rank order, distributed optimizer, layer-wise optimizer."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBuffer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.layer_wise_optimizer import LayerWiseDistributedOptimizer
from megatron.core.parallel_state import RankGenerator

from moelstrom.moe.checkpoint.layouts.holdings import share
from moelstrom.moe.checkpoint.layouts.layout import StateLayout
from moelstrom.moe.checkpoint.layouts.parameters import (
    LocalParameter,
    Skeleton,
    dense_parameters,
    expert_parameters,
)
from moelstrom.moe.config import ModelConfig, MoEConfig, OptimizerConfig
from moelstrom.moe.engines.kind import Run
from moelstrom.moe.grid import Place
from moelstrom.moe.optim.rules import rule

MODEL = ModelConfig(
    vocab_size=301,
    hidden_size=24,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    pattern=("attention/dense", "attention/moe"),
    ffn_size=70,
    qk_norm=True,
    tie_embeddings=True,
    moe=MoEConfig(num_experts=4, expert_size=40),
)
SMALL = st.integers(1, 3)


class Parameter(torch.nn.Parameter):
    """With the mark that Megatron sets."""

    shared_embedding: bool


@settings(deadline=None)
@given(SMALL, SMALL, SMALL, SMALL, SMALL)
def test_ranks_stand_where_megatron_puts_them(tp: int, cp: int, ep: int, edp: int, pp: int) -> None:
    dp, order = ep * edp, "tp-cp-ep-dp-pp"
    target = StateLayout(engine="megatron", tp=tp, cp=cp, dp=dp, ep=ep, pp=pp)
    dense = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order=order)
    experts = RankGenerator(tp=tp, ep=ep, dp=edp * cp, pp=pp, cp=1, order=order)

    def ranks(replicas: range) -> list[list[int]]:
        places = [(stage, tensor) for stage in range(pp) for tensor in range(tp)]
        return [[target.rank(Place(*place, r)) for r in replicas] for place in places]

    assert ranks(range(dp * cp)) == dense.get_ranks("dp-cp")
    copies = [group for e in range(ep) for group in ranks(range(e, dp * cp, ep))]
    assert sorted(copies) == sorted(experts.get_ranks("dp"))


@pytest.fixture
def alone() -> Iterator[None]:
    """A default process group of one, which Megatron's optimizers ask for."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def teams(target: StateLayout) -> list[tuple[list[LocalParameter], int]]:
    """(parameters, ranks that hold them) of every dense and every expert team that holds any."""
    model = Skeleton(MODEL)
    found = []
    for stage in range(target.pp):
        for tensor in range(target.tp):
            found.append((dense_parameters(model, target, stage, tensor), target.replicas))
            for e in range(target.ep):
                held = expert_parameters(model, target, stage, tensor, e)
                found.append((held, target.replicas // target.ep))
    return [team for team in found if team[0]]


def group(size: int, rank: int) -> Any:
    return SimpleNamespace(size=lambda: size, rank=lambda: rank)


def comparable(held: list[LocalParameter], runs: list[Run]) -> list[tuple[str, int, int]]:
    return sorted((held[run.index].local.name, run.start, run.numel) for run in runs)


@pytest.mark.parametrize("layout", [{"dp": 4, "ep": 2}, {"dp": 3, "tp": 2, "pp": 2}])
def test_distributed_optimizer(
    layout: dict[str, int], alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Megatron allocates its buffers on the current GPU.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    target = StateLayout(engine="megatron", **layout)
    for held, members in teams(target):
        for rank, mine in enumerate(share(held, members, target, OptimizerConfig())):
            assert comparable(held, mine) == distributed_optimizer(held, members, rank)


def distributed_optimizer(
    held: list[LocalParameter], members: int, rank: int
) -> list[tuple[str, int, int]]:
    """What Megatron's own buffer gives to a rank: (name, start, elements)."""
    names = {}
    for p in held:
        parameter = Parameter(torch.zeros(p.local.shape))
        parameter.shared_embedding = p.local.two_stages
        names[parameter] = p.local.name
    buffer = _ParamAndGradBuffer(
        DistributedDataParallelConfig(use_distributed_optimizer=True),
        torch.float32,
        torch.float32,
        list(names),
        group(members, rank),
        None,
        names,
        1.0,
        list(range(len(names))),
        False,
        SimpleNamespace(tp=group(1, 0), dp_cp=group(members, rank)),
    )
    found = []
    for bucket in range(len(buffer.buckets)):
        ranges = DistributedOptimizer._build_model_gbuf_range(buffer, bucket)["param_map"]
        for parameter, where in ranges.items():
            found.append((names[parameter], where["param"].start, where["param"].size))
    return sorted(found)


@pytest.mark.parametrize("layout", [{"dp": 4, "ep": 2}, {"dp": 3, "tp": 2, "pp": 2}])
def test_layer_wise_optimizer(layout: dict[str, int], alone: None) -> None:
    target, muon = StateLayout(engine="megatron", **layout), OptimizerConfig(name="muon")
    for held, members in teams(target):
        shares = share(held, members, target, muon)
        for mine, theirs in zip(shares, layer_wise_optimizer(held, members, muon), strict=True):
            assert comparable(held, mine) == theirs


def layer_wise_optimizer(
    held: list[LocalParameter], members: int, muon: OptimizerConfig
) -> list[list[tuple[str, int, int]]]:
    """What Megatron's layer-wise optimizer deals to each rank; every expert is a parameter."""
    names = {}
    groups: dict[str, list[torch.nn.Parameter]] = {"muon": [], "adamw": []}
    for p in held:
        numel = math.prod(p.local.shape[-2:])
        for start in range(0, p.local.numel, numel):
            parameter = torch.nn.Parameter(torch.zeros(numel))
            names[parameter] = p.local.name, start, numel
            groups[rule(p.local.spec, muon)].append(parameter)
    optimizers = [SimpleNamespace(param_groups=[{"params": ps}]) for ps in groups.values()]
    optimizer = object.__new__(LayerWiseDistributedOptimizer)
    optimizer.pg_collection = SimpleNamespace(dp_cp=group(members, 0), expt_dp=group(1, 0))
    optimizer.shard_params(optimizers)
    return [sorted(names[p] for p in dealt) for dealt in optimizer.dp_cp_params_list]
