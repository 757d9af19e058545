"""The laws that every registered layer keeps, those of other packages included."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from moelstrom.moe.batch import Batch
from moelstrom.moe.build import build_model
from moelstrom.moe.config import (
    EngineConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    layer_kinds,
)
from moelstrom.moe.engines import EngineOptions, make_engine
from moelstrom.moe.engines.base import Engine
from moelstrom.moe.grid import Grid
from moelstrom.moe.layers.blocks import BLOCKS
from moelstrom.moe.layers.ffns import FFNS
from moelstrom.moe.layers.mixers import MIXERS
from moelstrom.moe.layers.routers import ROUTERS
from moelstrom.moe.model import Model, model_specs
from moelstrom.moe.optim.rules import STATE, rule
from moelstrom.moe.sizing.counts import count_parameters, flops_per_token
from moelstrom.moe.sizing.work import model_costs
from moelstrom.moe.spec import Constant, Normal
from moelstrom.moe.state.source import TensorInfo

VOCAB, LENGTH = 32, 12
MOE = {"num_experts": 4, "top_k": 2, "expert_size": 24, "bias_update_rate": 1e-3}


@dataclass(frozen=True)
class Case:
    """A model of two layers with one kind in question."""

    name: str
    block: str = "pre_norm"
    mixer: str = "attention"
    ffn: str = "moe"
    router: str = "top_k"

    @property
    def config(self) -> ModelConfig:
        """Small, with every option at its default; only a mixture has a router."""
        layer: dict[str, Any] = {
            "repeat": 2,
            "block": self.block,
            "mixer": self.mixer,
            "ffn": {"kind": self.ffn, "router": self.router} if self.ffn == "moe" else self.ffn,
        }
        return ModelConfig.model_validate(
            {
                "vocab_size": VOCAB,
                "hidden_size": 16,
                "num_heads": 6,
                "num_kv_heads": 1,
                "head_dim": 8,
                "ffn_size": 24,
                "init_std": 0.1,
                "moe": MOE,
                "layers": [layer],
            }
        )


CASES = [
    *(Case(f"mixer-{name}", mixer=name) for name in MIXERS),
    *(Case(f"ffn-{name}", ffn=name) for name in FFNS),
    *(Case(f"router-{name}", router=name) for name in ROUTERS),
    *(Case(f"block-{name}", block=name) for name in BLOCKS),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def model(case: Case, grid: Grid) -> Model:
    return build_model(case.config, grid, seed=3)


@every
def test_specs_are_the_parameters(case: Case, model: Model) -> None:
    specs = model_specs(case.config)
    held = {local.name: (local.shape, tuple(p.shape)) for local, p in model.parameters_here()}
    assert list(held) == [name for name, spec in specs.items() if not spec.buffer]
    for name, (said, real) in held.items():
        stack = (specs[name].experts,) if specs[name].experts else ()
        assert said == real == (*stack, *specs[name].shape), name
    buffers = {name: tuple(b.shape) for name, b in model.named_buffers()}
    assert buffers == {name: spec.shape for name, spec in specs.items() if spec.buffer}


@every
def test_values_begin_as_the_specs_say(case: Case, model: Model) -> None:
    for local, p in model.parameters_here():
        init = local.spec.init
        assert torch.isfinite(p).all(), local.name
        if isinstance(init, Constant):
            assert (p == init.value).all(), local.name
        elif isinstance(init, Normal):
            error = 5 * init.std / math.sqrt(p.numel())
            assert abs(p.mean().item()) < error, local.name
            assert abs(p.square().mean().sqrt().item() - init.std) < error, local.name
    again = build_model(case.config, model.grid, seed=3)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


@every
def test_counts_are_the_elements(case: Case, model: Model) -> None:
    counts = count_parameters(case.config)
    assert counts.total == sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for local, p in model.parameters_here() if local.expert)
    assert counts.experts == experts
    used = experts * MOE["top_k"] // MOE["num_experts"]
    assert counts.active == counts.total - experts + used
    costs = model_costs(case.config, 8, LENGTH)
    assert costs.products and costs.moved > 0 and costs.saved > 0
    assert flops_per_token(case.config, LENGTH) >= 6 * (counts.active - counts.embedding)


@every
def test_matrices_are_products(case: Case) -> None:
    """What Muon takes is what `costs` multiplies by: no convolution, no stack of gates."""
    costs = model_costs(case.config, 1)
    products = sum(p.count * p.n * p.k for p in costs.products)
    routed = sum(3 * e.count * e.hidden * e.width * e.rows for e in costs.experts)
    specs = model_specs(case.config).items()
    table = case.config.vocab_size * case.config.hidden_size
    assert products + routed == table + sum(s.active for _, s in specs if s.update == "matrix")


@every
def test_every_parameter_has_a_rule(case: Case) -> None:
    for name in ("adamw", "muon"):
        for spec in model_specs(case.config).values():
            assert rule(spec, OptimizerConfig(name=name)) in STATE
            assert spec.update == "vector" or len(spec.shape) >= 2
            if len(spec.shape) < 2 or spec.buffer:
                assert not spec.decay


@every
@pytest.mark.parametrize("engine", ["native", "megatron"])
@pytest.mark.parametrize("tp", [1, 2, 3])
def test_every_element_stands_once(case: Case, engine: str, tp: int) -> None:
    from moelstrom.moe.checkpoint.layouts.check import misfits
    from moelstrom.moe.checkpoint.layouts.holdings import holdings
    from moelstrom.moe.checkpoint.layouts.layout import StateLayout
    from moelstrom.moe.checkpoint.layouts.parameters import Skeleton

    config, target = case.config, StateLayout(engine=engine, dp=2, tp=tp)
    if list(misfits(config, target)):
        pytest.skip(f"its units are not shared by {tp}")
    for optimizer in (OptimizerConfig(), OptimizerConfig(name="muon")):
        tensors = dict(_tensors(Skeleton(config), optimizer))
        seen = {
            name: torch.zeros(math.prod(info.shape), dtype=torch.int)
            for name, info in tensors.items()
        }
        for slabs in holdings(tensors, config, target, optimizer):
            for s in slabs:
                for row in range(s.rows):
                    at = s.offset + row * s.stride
                    seen[s.name][at : at + s.run] += 1
        assert all((times == 1).all() for times in seen.values())


def _tensors(skeleton: Any, optimizer: OptimizerConfig) -> Iterator[tuple[str, TensorInfo]]:
    for p in skeleton.parameters:
        update = rule(p.spec, optimizer)
        for t in p.logicals():
            for prefix in ("model", *(f"{update}/{key}" for key in STATE[update])):
                yield f"{prefix}/{t.name}", TensorInfo(torch.float32, t.shape)
    for name, spec in skeleton.buffers:
        yield f"model/{name}", TensorInfo(torch.float32, spec.shape)


def states(model: Model, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.states(tokens, documents.int())[0]


@every
@pytest.mark.parametrize("length", [1, 2, 3, LENGTH])
def test_the_past_does_not_see_the_future(model: Model, length: int) -> None:
    tokens = torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(5))
    documents = torch.zeros(2, length)
    before = states(model, tokens, documents)
    assert torch.isfinite(before).all()
    for at in {0, length // 2, length - 1}:
        changed = tokens.clone()
        changed[:, at] = (changed[:, at] + 1) % VOCAB
        after = states(model, changed, documents)
        torch.testing.assert_close(after[:, :at], before[:, :at])
        assert not torch.allclose(after[:, at], before[:, at])


@every
def test_packed_documents_are_as_alone(model: Model) -> None:
    tokens = torch.randint(VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(6))
    ends = (0, 1, 3, 8, LENGTH)
    documents = torch.cat([torch.full((1, b - a), i) for i, (a, b) in enumerate(pairwise(ends))], 1)
    packed = states(model, tokens, documents)
    for a, b in pairwise(ends):
        alone = states(model, tokens[:, a:b], torch.zeros(1, b - a))
        torch.testing.assert_close(packed[:, a:b], alone, rtol=1e-4, atol=1e-5)


def options(world: int, ep: int, recompute: bool = False) -> EngineOptions:
    return EngineOptions(
        engine=EngineConfig(recompute=recompute),
        layout=LayoutConfig(dp=world, ep=ep),
        optimizer=OptimizerConfig(name="muon", lr=0.01),
        schedule=ScheduleConfig(),
        steps=20,
    )


def engine(case: Case, grid: Grid, ep: int = 1, recompute: bool = False) -> Engine:
    made = make_engine(options(grid.world.size, ep, recompute), grid)
    made.setup(torch.device("cpu"))
    made.build(case.config, seed=3)
    return made


def batches(step: int, world: int = 1, rank: int = 0) -> list[Batch]:
    """This rank's share of four sequences in which every second token repeats the one before."""
    tokens = torch.randint(VOCAB, (4, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    tokens[:, 1::2] = tokens[:, :-1:2]
    documents = (torch.arange(LENGTH) >= 7).int().expand(4, LENGTH)
    rows = range(rank * 4 // world, (rank + 1) * 4 // world)
    return [Batch(tokens[[i], :-1], tokens[[i], 1:], documents[[i]]) for i in rows]


@every
def test_training_lowers_the_loss(case: Case, grid: Grid) -> None:
    made = engine(case, grid)
    losses = [made.step(batches(0)).loss for _ in range(8)]
    assert losses[-1] < losses[0] - 0.05


@every
def test_recomputing_changes_nothing(case: Case, grid: Grid) -> None:
    plain, again = engine(case, grid), engine(case, grid, recompute=True)
    for step in range(2):
        a, b = plain.step(batches(step)), again.step(batches(step))
        assert (a.loss, a.aux_loss, a.grad_norm) == (b.loss, b.aux_loss, b.grad_norm)
        assert all(torch.equal(x, y) for x, y in zip(a.expert_load, b.expert_load, strict=True))


@every
def test_a_resume_is_bitwise(case: Case, grid: Grid) -> None:
    whole, before, after = engine(case, grid), engine(case, grid), engine(case, grid)
    expected = [whole.step(batches(i)).loss for i in range(4)]
    found = [before.step(batches(i)).loss for i in range(2)]
    after.import_state(Saved(before))
    found += [after.step(batches(i)).loss for i in range(2, 4)]
    assert found == expected
    for a, b in zip(whole.export_state(), after.export_state(), strict=True):
        assert a.name == b.name and torch.equal(a.data, b.data), a.name


class Saved:
    """An engine's exported state as a checkpoint in memory."""

    folder: Any = None

    def __init__(self, made: Engine) -> None:
        self.step, self.meta = made.steps_done, {"skipped": 0}
        self._data = {s.name: s.data.clone() for s in made.export_state()}
        self.tensors = {s.name: TensorInfo(s.data.dtype, s.shape) for s in made.export_state()}

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        data = self._data[name]
        return data[offset : len(data) if numel is None else offset + numel].clone()


def two_steps(ep: int) -> dict[str, list[float]]:
    """Loss, auxiliary loss and gradient norm of two steps of every case on these ranks."""
    world, rank = dist.get_world_size(), dist.get_rank()
    grid = Grid(LayoutConfig(dp=world, ep=ep))
    found = {}
    for case in CASES:
        made = engine(case, grid, ep)
        steps = [made.step(batches(i, world, rank)) for i in range(2)]
        found[case.name] = [x for m in steps for x in (m.loss, m.aux_loss, m.grad_norm)]
    return found


def test_expert_parallel_ranks_agree_with_one(grid: Grid) -> None:
    alone = two_steps(1)
    for ranks in (run_ranks(2, two_steps, 1), run_ranks(2, two_steps, 2)):
        for case in CASES:
            one, two = (found[case.name] for found in ranks)
            assert one == two, case.name
            assert one == pytest.approx(alone[case.name], rel=2e-5), case.name


def test_layers_of_a_pattern_and_written_out_are_the_same() -> None:
    short = ModelConfig(pattern=("attention/dense", "attention/moe"), num_layers=4, head_dim=32)
    long = ModelConfig.model_validate(
        {
            "head_dim": 32,
            "layers": [
                {"mixer": "attention", "ffn": kind} for kind in ("dense", "moe", "dense", "moe")
            ],
        }
    )
    assert layer_kinds(short) == layer_kinds(long) and long.num_layers == 4
    assert ModelConfig.model_validate(long.model_dump()) == long
    assert layer_kinds(long)[0].mixer.model_dump()["head_dim"] == 32


def test_a_config_written_down_reads_back_the_same() -> None:
    """What an option inherits is written out; it is still the model's to change before that."""
    router = {"kind": "top_k", "z_weight": 0.5}
    fields = {
        "num_heads": 6,
        "head_dim": 8,
        "moe": {**MOE, "score": "sigmoid", "router": router},
        "layers": [
            {"mixer": {"kind": "attention", "num_kv_heads": 3}, "ffn": "moe"},
            {"mixer": "attention", "ffn": {"kind": "moe", "num_experts": 8, "router": "top_k"}},
        ],
    }
    config = ModelConfig.model_validate(fields)
    again = ModelConfig.model_validate(config.model_dump(mode="json"))
    assert layer_kinds(again) == layer_kinds(config)
    first, second = (kinds.ffn.model_dump() for kinds in layer_kinds(config))
    assert (first["num_experts"], first["router"]["num_experts"]) == (4, 4)
    assert (second["num_experts"], second["router"]["num_experts"]) == (8, 8)
    assert (first["router"]["z_weight"], first["router"]["score"]) == (0.5, "sigmoid")
    assert second["router"]["z_weight"] == second["z_weight"] == 1e-3
    short = {"moe": {"num_experts": 4, "router": router}, "num_layers": 1}
    config = ModelConfig.model_validate(short)
    again = ModelConfig.model_validate(config.model_dump(mode="json"))
    (kinds,) = layer_kinds(again)
    assert kinds.ffn.model_dump()["router"]["num_experts"] == 4
