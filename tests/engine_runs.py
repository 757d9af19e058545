"""Short training runs of a tiny mixture of experts, the same for every engine and layout."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from moelstrom.moe.batch import IGNORE, Batch
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
from moelstrom.moe.grid import Grid

VOCAB, LENGTH, SEQUENCES = 40, 16, 8
MODEL = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    # Odd sizes make engines pad and cut parameters.
    pattern=("attention/dense", "attention/moe"),
    ffn_size=25,
    qk_norm=True,
    # Makes experts a tenth of the gradient norm; at the usual 0.02 they are a hundredth.
    init_std=0.1,
    moe=MoEConfig(num_experts=4, top_k=2, expert_size=8, bias_update_rate=1e-2),
)
CLIP = 0.5
"""Gradient norm limit: below the norm of every step, so that clipping always acts."""
DEEPSPEED_LAYOUTS = ((1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2))
"""Every (ep, zero) that DeepSpeed runs on two ranks."""


@dataclass(frozen=True)
class Case:
    """One engine on one layout; the number of data-parallel ranks is the world's size."""

    engine: str
    ep: int
    zero: int
    precision: str = "fp32"
    optimizer: str = "adamw"
    tied: bool = False
    recompute: bool = False

    @property
    def native(self) -> "Case":
        """The native engine's run that should give the same numbers: its ZeRO ends at 1."""
        return replace(self, engine="native", zero=min(self.zero, 1), recompute=False)

    @property
    def options(self) -> EngineOptions:
        """What the engine is made from."""
        return EngineOptions(
            engine=EngineConfig(
                name=self.engine, precision=self.precision, bucket_mb=1, recompute=self.recompute
            ),
            layout=LayoutConfig(dp=dist.get_world_size(), ep=self.ep, zero=self.zero),
            optimizer=OptimizerConfig(name=self.optimizer, lr=5e-3, clip_grad=CLIP),
            schedule=ScheduleConfig(warmup_steps=2),
            steps=30,
        )


def microbatches(step: int, rows: int | None = None) -> list[Batch]:
    """This rank's share of a step's 8 sequences, in micro-batches of `rows` (None: of 2, and of 1
    at odd steps). Every second token repeats the one before; ranks differ in their targets."""
    g = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB, (SEQUENCES, LENGTH + 1), generator=g)
    tokens[:, 1::2] = tokens[:, :-1:2]
    targets = tokens[:, 1:].clone()
    targets[0, 3] = targets[5, :7] = IGNORE
    documents = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int32)
    share = SEQUENCES // dist.get_world_size()
    first, rows = dist.get_rank() * share, rows or (1 if step % 2 else 2)
    return [
        Batch(tokens[i : i + rows, :-1], targets[i : i + rows], documents[i : i + rows])
        for i in range(first, first + share, rows)
    ]


def start(case: Case) -> Engine:
    """A freshly built engine; collective."""
    options = case.options
    engine = make_engine(options, Grid(options.layout))
    engine.setup(torch.device("cpu"))
    model = MODEL.model_copy(update={"tie_embeddings": case.tied})
    engine.build(model, seed=1)
    return engine


def train(engine: Engine, first: int, last: int, rows: int | None = None) -> torch.Tensor:
    """Loss and gradient norm [last - first, 2] of steps [first, last)."""
    metrics = [engine.step(microbatches(i, rows)) for i in range(first, last)]
    return torch.tensor([(m.loss, m.grad_norm) for m in metrics], dtype=torch.float64)


def curve(case: Case, steps: int = 20, rows: int | None = None) -> torch.Tensor:
    """Loss and gradient norm of each step from the start, then a validation loss and 0."""
    engine = start(case)
    trained = train(engine, 0, steps, rows)
    total, count = engine.evaluate(microbatches(99))
    return torch.cat([trained, trained.new_tensor([[total / count, 0.0]])])


def curves(cases: list[Case], steps: int = 20) -> dict[Case, torch.Tensor]:
    """`curve` of every case."""
    return {case: curve(case, steps) for case in cases}


def save(engine: Engine, path: Path, meta: dict[str, int] | None = None) -> Reader:
    """Checkpoint the engine into the new folder `path` and open it; collective."""
    saver = Saver(CheckpointConfig(path=str(path)), dist.get_rank(), dist.get_world_size())
    saver.save(engine.steps_done, engine.export_state(), meta or {})
    saver.close()
    folder = latest(path)
    assert folder is not None
    return Reader(folder)


def load(case: Case, reader: Reader) -> Engine:
    """A fresh engine with the checkpoint's state; collective."""
    engine = start(case)
    engine.import_state(reader)
    return engine


def state(engine: Engine) -> dict[tuple[str, int], torch.Tensor]:
    """This rank's part of the canonical state: copies by (name, offset)."""
    return {(s.name, s.offset): s.data.clone() for s in engine.export_state()}


def differences(engine: Engine, reader: Reader) -> list[str]:
    """Canonical tensors that the engine does not export as the checkpoint holds them, bit for
    bit, or not every element of; collective, the same on every rank."""
    mine = state(engine)
    wrong = {
        name
        for (name, offset), data in mine.items()
        if not torch.equal(reader.read(name, offset, data.numel()), data)
    }
    sizes: Counter[str] = Counter()
    for (name, _), data in mine.items():
        sizes[name] += data.numel()
    parts: list[tuple[set[str], Counter[str]]] = [(set(), Counter())] * dist.get_world_size()
    dist.all_gather_object(parts, (wrong, sizes))
    found = sum((part for _, part in parts), Counter())
    expected = {name: math.prod(info.shape) for name, info in reader.tensors.items()}
    missing = {n for n in found.keys() | expected.keys() if found[n] != expected.get(n)}
    return sorted(missing.union(*(names for names, _ in parts)))


def resume(case: Case, path: Path) -> list[str]:
    """What differs, in any bit, 10 steps after a fresh engine took over at step 3; collective."""
    straight = start(case)
    train(straight, 0, 3)
    again = load(case, save(straight, path))
    a, b = train(straight, 3, 13), train(again, 3, 13)
    problems = [] if torch.equal(a, b) else [f"losses {a.tolist()} and {b.tolist()}"]
    held, loaded = state(straight), state(again)
    assert held.keys() == loaded.keys()
    return problems + [str(key) for key in held if not torch.equal(held[key], loaded[key])]


def resume_all(cases: list[Case], path: Path) -> dict[Case, list[str]]:
    """`resume` of every case."""
    return {case: resume(case, path / str(i)) for i, case in enumerate(cases)}
