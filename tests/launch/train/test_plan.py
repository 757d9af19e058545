"""The dry run's numbers agree with what a run really allocates."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from moelstrom import UserError
from moelstrom.launch.config import RunConfig, load
from moelstrom.launch.train.plan import make_plan
from moelstrom.moe.batch import Batch
from moelstrom.moe.build import build_model
from moelstrom.moe.config import LayoutConfig
from moelstrom.moe.engines import make_engine
from moelstrom.moe.grid import Grid
from moelstrom.moe.sizing.memory import Memory

SMALL = [
    "model.hidden_size=32",
    "model.head_dim=8",
    "model.ffn_size=48",
    "model.moe.expert_size=24",
    "model.moe.shared_expert_size=16",
    "data.seq_len=32",
    "data.micro_batch_size=2",
    "engine.bucket_mb=1",
]


def small(dp: int, ep: int, zero: int, optimizer: str, precision: str) -> RunConfig:
    layout = [f"layout.dp={dp}", f"layout.ep={ep}", f"layout.zero={zero}"]
    choices = [f"optimizer.name={optimizer}", f"engine.precision={precision}"]
    return load("tiny", [*SMALL, *layout, *choices])


def estimate(config: RunConfig) -> Memory:
    return make_plan(config).memory


LAYOUTS = {1: [(1, 0), (1, 1)], 4: [(1, 0), (1, 1), (2, 0), (2, 1), (4, 1)]}
"""(ep, zero) by the number of ranks."""


def cases(dp: int) -> list[tuple[int, int, int, str, str]]:
    return [
        (dp, ep, zero, optimizer, precision)
        for ep, zero in LAYOUTS[dp]
        for optimizer in ("adamw", "muon")
        for precision in ("fp32", "bf16")
    ]


def allocated(dp: int) -> list[dict[str, int]]:
    return [_allocated(small(*case)) for case in cases(dp)]


def _allocated(config: RunConfig) -> dict[str, int]:
    """Bytes of this rank's engine, each storage once."""
    engine: Any = make_engine(config.engine_options, Grid(config.layout))
    engine.setup(torch.device("cpu"))
    engine.build(make_plan(config).model, seed=0)
    buckets, optimizers = engine.buckets, engine.optimizers
    gradients = [t for b in buckets for t in (b.gradient, b.shard_gradient)]
    moments = [t for o in optimizers for t in o.state.values()]
    return {
        "weights": _bytes(list(engine.model.parameters())),
        "gradients": _bytes(gradients),
        "optimizer": _bytes([b.master for b in buckets] + moments),
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Grid(LayoutConfig())
    dist.destroy_process_group()


@pytest.mark.parametrize("dp", LAYOUTS)
def test_memory_is_what_the_native_engine_allocates(grid: Grid, dp: int) -> None:
    ranks = run_ranks(dp, allocated, dp) if dp > 1 else [allocated(dp)]
    for index, case in enumerate(cases(dp)):
        memory = estimate(small(*case))
        _, _, zero, optimizer, _ = case
        # Shards are padded: to whole matrices for Muon, else to equal lengths.
        slack = {"muon": 0.3, "adamw": 0.001}[optimizer] if zero and dp > 1 else 0.0
        # The norms, which Muon does not take, are counted with the matrices.
        slack += 0.005 if optimizer == "muon" else 0.0
        for rank in ranks:
            assert rank[index]["weights"] == memory.weights, case
            for part in ("gradients", "optimizer"):
                real, expected = rank[index][part], getattr(memory, part)
                assert expected <= real <= expected * (1 + slack), (case, part)


PATTERNS = "[attention/dense]", "[attention/moe]", "[attention/dense, attention/moe, attention/moe]"


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_a_bound_from_below(grid: Grid, pattern: str, precision: str) -> None:
    config = load("tiny", [*SMALL, f"model.pattern={pattern}", f"engine.precision={precision}"])
    model = build_model(make_plan(config).model, grid, seed=0)
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    tokens = torch.randint(0, 256, (2, 32))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(Batch(tokens, tokens, torch.zeros(2, 32, dtype=torch.int32)))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    activations = [t for t in saved if t.untyped_storage().data_ptr() not in weights]
    real, bound = _bytes(activations), estimate(config).activations
    assert 0.5 * real < bound < real
    assert estimate(load("tiny", [*SMALL, "engine.recompute=true"])).activations < bound * 1.1


def test_stages_shard_one_part_after_another() -> None:
    def at(zero: int) -> Memory:
        overrides = ["engine.name=deepspeed", "layout.ep=1", f"layout.zero={zero}"]
        return estimate(load("tiny", overrides))

    whole = [at(zero) for zero in range(4)]
    count = make_plan(load("tiny")).parameters.total
    assert [m.weights for m in whole] == [4 * count] * 3 + [2 * count]
    assert [m.gradients for m in whole] == [4 * count] * 2 + [2 * count] * 2
    # Without ZeRO DeepSpeed updates the fp32 weights themselves.
    assert [m.optimizer for m in whole] == [8 * count] + [6 * count] * 3


def plan_json(*overrides: str) -> dict[str, Any]:
    return json.loads(json.dumps(make_plan(load("tiny", list(overrides))).as_json()))


def test_plan_of_the_recipe() -> None:
    plan = plan_json()
    assert plan["parameters"] == {
        "total": 1_756_544,
        "active": 871_808,
        "experts": 1_179_648,
        "embedding": 40_960,
    }
    assert plan["tokens_per_step"] == 16 * 256 and plan["microbatches_per_step"] == 1
    memory = plan["memory_per_rank_bytes"]
    assert memory["total"] == sum(memory[part] for part in memory if part != "total")
    assert [slot["rank"] for slot in plan["placement"]] == [0, 1]
    assert plan["world_sizes"] == [2]
    assert plan_json("cluster.elastic=true")["world_sizes"] == [2, 1]


def test_vocabulary_fits_the_tokenizer() -> None:
    assert make_plan(load("tiny")).model.vocab_size == 320
    assert make_plan(load("tiny", ["model.vocab_size=257"])).model.vocab_size == 257
    with pytest.raises(UserError, match=r"model\.vocab_size: 256 is below the tokenizer's 257"):
        make_plan(load("tiny", ["model.vocab_size=256"]))
    with pytest.raises(UserError, match=r"data\.tokenizer: cannot read /none"):
        make_plan(load("tiny", ["data.tokenizer=/none"]))


def test_largest_numbers_can_be_planned() -> None:
    sizes = ("hidden_size", "ffn_size", "head_dim", "num_heads", "moe.expert_size")
    huge = [f"model.{name}={2**31 - 8}" for name in sizes]
    plan = plan_json("model.num_layers=16384", "model.num_kv_heads=1", *huge)
    assert plan["parameters"]["total"] > 1e20
    many = plan_json("layout.dp=65536", "layout.ep=8", f"data.global_batch_size={8 * 65536}")
    assert len(many["placement"]) == 65536
