"""Checkpoints of released versions load for ever; released/README.md says how each was made."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from safetensors.numpy import load_file

from moelstrom.moe.batch import Batch
from moelstrom.moe.checkpoint.reader import Reader, choose, verify
from moelstrom.moe.config import (
    EngineConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from moelstrom.moe.engines import EngineOptions, make_engine
from moelstrom.moe.grid import Grid

RELEASED = Path(__file__).with_name("released")
SHA256 = {
    "1-adamw": "168a4734be679f79b6127a4b4dd1cae4c39deb5b2c8e38ef53ce1149a7efb937",
    "2-adamw": "168a4734be679f79b6127a4b4dd1cae4c39deb5b2c8e38ef53ce1149a7efb937",
    "2-deepspeed": "1e19f8f978268cc9ac838bd194aa11a74cbb05ab51a02f42ab73d467321a3e27",
    "2-muon": "9d8a24e7f405a8e9342b32fb9b10e57e57c85951eade370fd4357272c9e4076f",
}
"""Of every tensor's name, and of its bytes in logical order, by name."""


def folder(name: str) -> Path:
    return RELEASED / name / "step-00000008"


def independent_digest(path: Path) -> str:
    """By safetensors and the manifest's plain ranges."""
    tensors = json.loads((path / "manifest.json").read_text())["tensors"]
    files = {file.name: load_file(file) for file in path.glob("*.safetensors")}
    sha = hashlib.sha256()
    for name in sorted(tensors):
        pieces = sorted(tensors[name]["pieces"], key=lambda piece: piece["offset"])
        data = b"".join(files[piece["file"]][piece["key"]].tobytes() for piece in pieces)
        sha.update(name.encode() + data)
    return sha.hexdigest()


def test_every_one_is_listed() -> None:
    assert {path.name for path in RELEASED.iterdir() if path.is_dir()} == set(SHA256)


@pytest.mark.parametrize("name", SHA256)
def test_reads_what_was_written(name: str) -> None:
    path = folder(name)
    assert choose(path.parent, lambda text: pytest.fail(text)) == path
    reader = verify(path)
    sha = hashlib.sha256()
    for tensor in sorted(reader.tensors):
        sha.update(tensor.encode() + reader.read(tensor).view(torch.uint8).numpy().tobytes())
    assert sha.hexdigest() == SHA256[name] == independent_digest(path)
    assert reader.step == 8 and reader.meta["data"]["samples"] == 64
    assert json.loads((path / "manifest.json").read_text())["version"] == int(name[0])


def resumed(name: str) -> float:
    """Load it on one rank, compare every element, and train a step; that step's loss."""
    reader = Reader(folder(name))
    config = reader.meta["config"]
    model = ModelConfig.model_validate(reader.meta["model"])
    options = EngineOptions(
        engine=EngineConfig(),
        layout=LayoutConfig(),
        optimizer=OptimizerConfig.model_validate(config["optimizer"]),
        schedule=ScheduleConfig.model_validate(config["schedule"]),
        steps=config["steps"] + 1,
    )
    engine = make_engine(options, Grid(options.layout))
    engine.setup(torch.device("cpu"))
    engine.build(model, seed=1)
    engine.import_state(reader)
    assert engine.steps_done == 8
    shards = engine.export_state()
    assert {s.name for s in shards} == {n for n in reader.tensors if not n.startswith("rng/")}
    for shard in shards:
        saved = reader.read(shard.name, shard.offset, shard.data.numel())
        assert torch.equal(shard.data.view(torch.uint8), saved.view(torch.uint8)), shard.name
    tokens = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.zeros(2, 16).int())
    return engine.step([batch]).loss


def resume_all() -> dict[str, float]:
    assert dist.get_world_size() == 1
    return {name: resumed(name) for name in SHA256}


def test_training_goes_on_from_it() -> None:
    (losses,) = run_ranks(1, resume_all)
    # On random bytes: about ln 320 after so few steps.
    assert set(losses) == set(SHA256) and all(4 < loss < 8 for loss in losses.values())
