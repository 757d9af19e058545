"""Saves behind real training steps hold exactly the state at the save."""

import time
from collections.abc import Callable
from pathlib import Path

import engine_runs as runs
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from moelstrom.moe.checkpoint import snapshot
from moelstrom.moe.checkpoint.reader import Reader, complete, verify
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

CASES = [
    runs.Case("native", 1, 1),
    runs.Case("native", 2, 1, optimizer="muon"),
    runs.Case("native", 1, 0, precision="bf16"),
    runs.Case("deepspeed", 1, 0),
    runs.Case("deepspeed", 2, 2, precision="bf16"),
    runs.Case("deepspeed", 1, 3),
]


def slow_copies(seconds: float) -> None:
    """Make each copy of a shard take its time, as a large one does."""
    true_copy = snapshot.copy

    def copy(host: torch.Tensor, data: torch.Tensor) -> None:
        time.sleep(seconds)
        true_copy(host, data)

    snapshot.copy = copy


def wrong(held: dict[tuple[str, int], torch.Tensor], reader: Reader) -> list[str]:
    """Names of the held pieces that the checkpoint has other bits for."""
    return [
        name
        for (name, offset), data in held.items()
        if not torch.equal(reader.read(name, offset, data.numel()), data)
    ]


def saved_behind(case: runs.Case, path: Path, attach: bool = True) -> list[str]:
    """Save after steps 2 and 4 while training goes on; tensors of the checkpoints that differ
    from the state at that moment."""
    engine = runs.start(case)
    saver = Saver(CheckpointConfig(path=str(path)), dist.get_rank(), dist.get_world_size())
    saver.attach(engine)
    if not attach:
        engine.before_update = lambda: None
    runs.train(engine, 0, 2)
    held = {}
    for step in (2, 4):
        held[step] = runs.state(engine)
        saver.save(step, engine.export_state(), {})
        runs.train(engine, step, step + 2)
    saver.close()
    dist.barrier()
    assert [verify(folder).step for folder in complete(path)] == [2, 4]
    moved = [key for key in held[2] if not torch.equal(held[2][key], held[4][key])]
    assert len(moved) > 10 or (case.zero == 0 and dist.get_rank() > 0)
    readers = [Reader(folder) for folder in complete(path)]
    return [name for reader in readers for name in wrong(held[reader.step], reader)]


def all_behind(cases: list[runs.Case], path: Path, seconds: float) -> list[list[str]]:
    slow_copies(seconds)
    return [saved_behind(case, path / str(i)) for i, case in enumerate(cases)]


def unsettled(path: Path, seconds: float) -> list[str]:
    slow_copies(seconds)
    return saved_behind(CASES[0], path, attach=False)


@pytest.mark.parametrize("engine", ["native", "deepspeed"])
def test_state_at_the_save_is_what_is_saved(tmp_path: Path, engine: str) -> None:
    cases = [case for case in CASES if case.engine == engine]
    for rank in run_ranks(2, all_behind, cases, tmp_path, 0.002):
        assert rank == [[]] * len(cases)


def test_an_update_that_does_not_wait_would_spoil_it(tmp_path: Path) -> None:
    """The case above can fail: copies are slower than a step."""
    assert any(run_ranks(2, unsettled, tmp_path, 0.002))


class Held:
    """As an engine: one large tensor that updates write, and one that anything may."""

    def __init__(self, device: str) -> None:
        self.weights = torch.zeros(10_000_000, device=device)
        self.bias = torch.zeros(10, device=device)
        self.before_update: Callable[[], None] = lambda: None
        """The saver puts its own here."""

    def export_state(self) -> list[Shard]:
        return [
            Shard("model/w", (self.weights.numel(),), 0, self.weights, steady=True),
            Shard("model/bias", (10,), 0, self.bias),
        ]


GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_one_save_after_another(tmp_path: Path, device: str) -> None:
    held = Held(device)
    saver = Saver(CheckpointConfig(path=str(tmp_path), keep=9), 0, 1)
    saver.attach(held)
    for step in range(1, 6):
        held.weights.fill_(step)
        held.bias.fill_(step)
        saver.save(step, held.export_state(), {})
        held.bias.fill_(-1)
        held.before_update()
        held.weights.fill_(-1)
    saver.close()
    for folder in complete(tmp_path):
        reader = verify(folder)
        assert all((reader.read(name) == reader.step).all() for name in reader.tensors)
    assert len(complete(tmp_path)) == 5
