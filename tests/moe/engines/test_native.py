"""The native engine: sharding, expert parallelism and accumulation change no result."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from moelstrom.moe.batch import Batch
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
from moelstrom.moe.layout import Groups

VOCAB, LENGTH, SEQUENCES = 40, 16, 8
MODEL = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    pattern=("attention/dense", "attention/moe"),
    ffn_size=24,
    moe=MoEConfig(num_experts=4, top_k=2, expert_size=8, bias_update_rate=1e-2),
)


def options(optimizer: str, dp: int, ep: int, zero: int, precision: str = "fp32") -> EngineOptions:
    return EngineOptions(
        engine=EngineConfig(name="native", precision=precision, bucket_mb=1),
        layout=LayoutConfig(dp=dp, ep=ep, zero=zero),
        optimizer=OptimizerConfig(name=optimizer, lr=5e-3),
        schedule=ScheduleConfig(warmup_steps=2),
        steps=10,
    )


def microbatches(step: int, rows: int) -> list[Batch]:
    """This rank's share of a step's 8 sequences, in micro-batches of `rows`."""
    g = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB, (SEQUENCES, LENGTH + 1), generator=g)
    documents = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int32)
    share = SEQUENCES // dist.get_world_size()
    first = dist.get_rank() * share
    return [
        Batch(tokens[i : i + rows, :-1], tokens[i : i + rows, 1:], documents[i : i + rows])
        for i in range(first, first + share, rows)
    ]


def start(opts: EngineOptions):
    groups = Groups(opts.layout)
    engine = make_engine(opts, groups)
    engine.setup(torch.device("cpu"))
    engine.build(build_model(MODEL, groups, seed=1))
    return engine


def losses(opts: EngineOptions, rows: int, steps: int) -> list[tuple[float, float]]:
    engine = start(opts)
    metrics = [engine.step(microbatches(i, rows)) for i in range(steps)]
    return [(m.loss, m.grad_norm) for m in metrics]


VARIANTS = ((1, 0, 2), (1, 1, 4), (2, 0, 4), (2, 1, 1))
"""(ep, zero, micro-batch) of two data-parallel ranks."""


def two_rank_losses(optimizer: str) -> list:
    return [losses(options(optimizer, 2, ep, zero), rows, 5) for ep, zero, rows in VARIANTS]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_layouts_agree(optimizer: str) -> None:
    (reference,) = run_ranks(1, losses, options(optimizer, 1, 1, 1), 4, 5)
    assert reference[-1] != reference[0]
    for rank in run_ranks(2, two_rank_losses, optimizer):
        for got in rank:
            torch.testing.assert_close(
                torch.tensor(got), torch.tensor(reference), rtol=2e-4, atol=1e-5
            )


def resume(opts: EngineOptions, path: Path, rows: int) -> tuple[list, list, list, list]:
    """Losses and state of a run of 6 steps, and of one resumed after 3 in a fresh engine."""
    engine = start(opts)
    for i in range(3):
        engine.step(microbatches(i, rows))
    saver = Saver(CheckpointConfig(path=str(path)), dist.get_rank(), dist.get_world_size())
    saver.save(3, engine.export_state(), {})
    saver.wait()
    straight = [engine.step(microbatches(i, rows)).loss for i in range(3, 6)]
    again = start(opts)
    folder = latest(path)
    assert folder is not None
    again.import_state(Reader(folder))
    resumed = [again.step(microbatches(i, rows)).loss for i in range(3, 6)]
    return straight, resumed, _plain(engine), _plain(again)


def _plain(engine) -> list:
    return [(s.name, s.offset, s.data.clone()) for s in engine.export_state()]


def resume_all(path: Path, dp: int) -> dict[tuple, tuple]:
    layouts = [(1, 0)] if dp == 1 else [(2, 1), (1, 1), (1, 0)]
    return {
        (optimizer, precision, ep, zero): resume(
            options(optimizer, dp, ep, zero, precision),
            path / f"{optimizer}-{precision}-{ep}-{zero}",
            2,
        )
        for optimizer in ("adamw", "muon")
        for precision in ("fp32", "bf16")
        for ep, zero in layouts
    }


@pytest.mark.parametrize("dp", [1, 2])
def test_resume_is_bitwise(tmp_path: Path, dp: int) -> None:
    for rank in run_ranks(dp, resume_all, tmp_path, dp):
        for case, (straight, resumed, state, again) in rank.items():
            assert straight == resumed, case
            for (name, offset, a), (name2, offset2, b) in zip(state, again, strict=True):
                assert (name, offset) == (name2, offset2)
                assert torch.equal(a, b), (case, name)
