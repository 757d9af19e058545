"""How long saving holds training up, against a synchronous save of the same state.

`python -m moelstrom.moe.checkpoint.stall [--size 300m] [--path FOLDER] [--json]`, on a GPU if there
is one. In turns: plain training steps, one synchronous save, one save behind a training step.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from ..batch import Batch
from ..config import (
    CheckpointConfig,
    EngineConfig,
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from ..engines import EngineOptions, make_engine
from ..engines.base import Engine
from ..grid import Grid
from .saver import Saver

SIZES = {
    "2m": {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1},
    "30m": {"hidden_size": 384, "num_layers": 6, "num_heads": 6, "num_kv_heads": 2},
    "100m": {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 2},
    "300m": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 4},
}
"""Shapes with 16 experts a layer; 300m is the recipe moe-300m."""
EXPERT_SIZES = {"2m": 128, "30m": 320, "100m": 512, "300m": 640}
VOCAB = 320
STEPS = 100
PLAIN_STEPS = 2
"""Steps without a save before each save."""


class StallBench:
    """A training step and two savers of its state."""

    def __init__(
        self, size: str, tokens: tuple[int, int], path: Path, device: torch.device
    ) -> None:
        self.path, self.device = path, device
        self.engine = _engine(size, device)
        self.batch = _batch(*tokens)
        self.events: list[dict[str, Any]] = []
        self.behind = self._saver("behind", asynchronous=True)
        self.synchronous = self._saver("synchronous", asynchronous=False)
        self.behind.attach(self.engine)

    def _saver(self, name: str, asynchronous: bool) -> Saver:
        config = CheckpointConfig(path=str(self.path / name), asynchronous=asynchronous, retries=0)
        return Saver(config, 0, 1, self.events.append)

    def step(self) -> float:
        """Seconds of one training step."""
        started = time.perf_counter()
        self.engine.step([self.batch])
        self._finish()
        return time.perf_counter() - started

    def save_synchronously(self) -> dict[str, float]:
        """Seconds that training stands still for the whole save, and of its write alone."""
        began = time.perf_counter()
        self.synchronous.save(self.engine.steps_done, self.engine.export_state(), {})
        whole = time.perf_counter() - began
        return {"synchronous_s": whole, "synchronous_write_s": self._event()["write_s"]}

    def save_behind(self) -> dict[str, float]:
        """Milliseconds on the training thread (naming the shards, `save`, `settle`, and all of
        them), seconds of the step meanwhile and of the write."""
        began = time.perf_counter()
        shards = self.engine.export_state()
        export_ms = (time.perf_counter() - began) * 1e3
        save_ms = self.behind.save(self.engine.steps_done, shards, {})
        step_s = self.step()
        self.behind.wait()
        event = self._event()
        return {
            "export_ms": export_ms,
            "save_ms": save_ms,
            "settle_ms": event["stall_ms"] - save_ms,
            "stall_ms": export_ms + event["stall_ms"],
            "step_with_save_s": step_s,
            "write_behind_s": event["write_s"],
            "bytes": event["bytes"],
        }

    def pair(self) -> dict[str, float]:
        """One save of each kind, after plain steps."""
        plain = median(self.step() for _ in range(PLAIN_STEPS))
        row = {"plain_step_s": plain, **self.save_behind(), **self.save_synchronously()}
        for name in ("behind", "synchronous"):
            shutil.rmtree(self.path / name)
        # The write alone is what any synchronous save must do: the copy is ours.
        row["share"] = row["stall_ms"] / 1e3 / row["synchronous_write_s"]
        return row

    def _event(self) -> dict[str, Any]:
        return self.events.pop()

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(size: str, pairs: int, path: Path, device: torch.device) -> dict[str, Any]:
    """Rows of `pairs` pairs of saves, the first of them the run's first, and their medians."""
    tokens = (8, 2048) if device.type == "cuda" else (1, 512)
    bench = StallBench(size, tokens, path, device)
    rows = [bench.pair() for _ in range(pairs)]
    for saver in (bench.behind, bench.synchronous):
        saver.close()
    parameters = sum(p.numel() for p in bench.engine.model.parameters())
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "size": size,
        "parameters": parameters,
        "tokens_a_step": tokens[0] * tokens[1],
        "median": {key: median(row[key] for row in rows) for key in rows[0]},
        "worst_share": max(row["share"] for row in rows),
        "pairs": rows,
    }


def _engine(size: str, device: torch.device) -> Engine:
    moe = MoEConfig(num_experts=16, top_k=2, expert_size=EXPERT_SIZES[size])
    model = ModelConfig(vocab_size=VOCAB, head_dim=64, qk_norm=True, moe=moe, **SIZES[size])
    layout = LayoutConfig()
    precision = "bf16" if device.type == "cuda" else "fp32"
    options = EngineOptions(
        engine=EngineConfig(precision=precision),
        layout=layout,
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        steps=STEPS,
    )
    engine = make_engine(options, Grid(layout))
    engine.setup(device)
    engine.build(model, seed=0)
    return engine


def _batch(rows: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (rows, length + 1), generator=generator)
    documents = torch.zeros(rows, length, dtype=torch.int32)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), documents)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="moelstrom.moe.checkpoint.stall")
    parser.add_argument("--size", choices=SIZES, default="30m")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--path", type=Path, help="folder on the disk to measure")
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(dir=options.path) as folder:
        result = measure(options.size, options.pairs, Path(folder), device)
    dist.destroy_process_group()
    if options.json:
        print(json.dumps(result, indent=1))
        return
    m = result["median"]
    print(
        f"{result['parameters'] / 1e6:.0f}M parameters, {m['bytes'] / 1e9:.2f} GB on "
        f"{result['device']}: training stands still for {m['stall_ms']:.1f} ms, a synchronous save "
        f"writes for {m['synchronous_write_s']:.2f} s: {m['share']:.2%} (worst of "
        f"{len(result['pairs'])}: {result['worst_share']:.2%})"
    )


if __name__ == "__main__":
    main()
