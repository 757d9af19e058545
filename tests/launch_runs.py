"""Small real training runs: a dataset, a config, ways to start the worker, what it left."""

import asyncio
import email
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from moelstrom.cluster.events import EventWriter
from moelstrom.launch.config import load
from moelstrom.launch.data.prepare import prepare
from moelstrom.launch.data.tokenizer import ByteTokenizer
from moelstrom.launch.train.log import select
from moelstrom.launch.train.records import StepRecord
from moelstrom.launch.worker import run
from moelstrom.moe.checkpoint.folder import step_folder
from moelstrom.moe.checkpoint.reader import verify

STEPS = 20

CONFIG: dict[str, Any] = {
    "steps": STEPS,
    "evaluation": {"batches": 1},
    "model": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "ffn_size": 64,
        "pattern": ["attention/dense", "attention/moe"],
        "moe": {"num_experts": 4, "top_k": 2, "expert_size": 32, "bias_update_rate": 1e-3},
    },
    "data": {"seq_len": 64, "micro_batch_size": 2, "global_batch_size": 8},
    "layout": {"dp": 2, "ep": 2},
    "optimizer": {"lr": 3e-3},
    "checkpoint": {"interval": 10, "keep": 10},
}


def make_dataset(folder: Path) -> Path:
    """Two domains out of two packages of the standard library."""
    packages = {"asyncio": asyncio, "email": email}
    domains = {name: Path(str(package.__file__)).parent for name, package in packages.items()}
    out = folder / "data"
    prepare(out, domains, ByteTokenizer(), valid_fraction=0.2, progress=False)
    return out


def write_config(folder: Path, data: Path, output: Path, /, **sections: Any) -> Path:
    """CONFIG as a YAML file, with fields of its sections replaced."""
    values = {**CONFIG, "output": str(output)}
    values["data"] = {**values["data"], "path": str(data)}
    for name, fields in sections.items():
        old = values.get(name)
        values[name] = {**old, **fields} if isinstance(old, dict) else fields
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run_worker(config: Path, ranks: int = 1) -> "subprocess.CompletedProcess[str]":
    """The worker by `python -m`, or by torchrun on several ranks."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command = [*launcher, "moelstrom.launch.worker", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def run_here(config: Path) -> bool:
    """The worker as one rank in this process: quicker to start."""
    return run(load(str(config)), [], EventWriter(None))


def losses(output: Path) -> dict[int, float]:
    """Training loss of each step, as last logged."""
    steps = select(output, StepRecord)
    return {r.step: r.loss for r in steps if r.loss is not None}


def final_state(output: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Every tensor of a run's checkpoint."""
    reader = verify(step_folder(output / "checkpoints", step))
    return {name: reader.read(name) for name in reader.tensors}
