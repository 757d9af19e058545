"""Generators go on where they were; a rank that was not there before gets its own."""

from pathlib import Path

import torch

from moelstrom.launch.train.random_state import load_random_state, random_seed, random_state
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig

CPU = torch.device("cpu")


def test_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(11)
    saver = Saver(CheckpointConfig(path=str(tmp_path), asynchronous=False), 0, 1)
    saver.save(4, random_state(0, CPU), {})
    saver.close()
    expected = torch.rand(3)
    source = Reader(tmp_path / "step-00000004")
    load_random_state(source, 0, CPU, seed=5)
    assert torch.equal(torch.rand(3), expected)
    load_random_state(source, 1, CPU, seed=5)
    assert torch.initial_seed() == random_seed(5, 1, 4)
