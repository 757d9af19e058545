"""Reshaping against `cp` of the same bytes and against DeepSpeed's and torch DCP's own ways.

`python -m moelstrom.moe.checkpoint.reshape.bench [--mb 600] [--rounds 5] [--path FOLDER]
[--realtime] [--json]`.
Everything is flushed to disk inside the timed part; sources lie in the page cache for all. In each
round every reshape runs beside a `cp -r` of its source, in alternating order. `--realtime` keeps
other programs of a busy machine out of these (of both alike), in turns of about a second.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...config import ModelConfig, MoEConfig, OptimizerConfig
from ...state.source import Source
from .. import folder as disk
from ..layouts.holdings import holdings
from ..layouts.layout import make_target
from ..reader import Reader
from . import peers
from .plan import make_plan, state_bytes
from .run import reshape
from .synthetic import Synthetic

SAVED = {"dp": 2}
TARGETS: dict[str, dict[str, Any]] = {
    "one rank": {"dp": 1, "zero": 0},
    "dp 4, ep 2": {"dp": 4, "ep": 2},
    "tp 2, dp 2": {"tp": 2, "dp": 2},
    "pp 2, ep 2, dp 2": {"pp": 2, "ep": 2, "dp": 2},
}
"""From the native engine's two ranks."""
BYTES_PER_PARAMETER = 12


class ReshapeBench:
    """The checkpoints to convert, under `path`."""

    def __init__(self, path: Path, megabytes: int, realtime: bool) -> None:
        self._path, self._realtime = path, realtime
        self._model = _model(megabytes)
        self._optimizer = OptimizerConfig()
        (path / "nothing").mkdir()
        synthetic = Synthetic(path / "nothing", self._model, self._optimizer)
        self.ours = self._reshape(synthetic, "saved", SAVED)
        self.cores = os.cpu_count() or 1

    def _reshape(self, source: Source, name: str, layout: dict[str, Any]) -> Path:
        held = holdings(source.tensors, self._model, make_target(**layout), self._optimizer)
        return reshape(make_plan(source, held), self._path / name)

    def _copy(self) -> Path:
        out = self._path / "out"
        subprocess.run(["cp", "-r", self.ours, out], check=True)
        return out

    def _timed(self, make: Callable[[], Path]) -> float:
        """Seconds to make a folder and flush it, which is then removed."""
        os.sync()
        started = time.perf_counter()
        folder = make()
        for file in peers.files_below(folder):
            disk.sync(file)
        seconds = time.perf_counter() - started
        shutil.rmtree(self._path / "out", ignore_errors=True)
        shutil.rmtree(self._path / peers.UNIVERSAL, ignore_errors=True)
        return seconds

    def pair(self, layout: dict[str, Any], turn: int) -> dict[str, float]:
        """One `cp` and one reshape; `turn` says which comes first."""
        ways = {
            "cp_s": self._copy,
            "reshape_s": lambda: self._reshape(Reader(self.ours), "out", layout),
        }
        row = {}
        for name in sorted(ways, reverse=bool(turn % 2)):
            with _alone(self._realtime):
                row[name] = self._timed(ways[name])
        return {**row, "share_of_cp": row["cp_s"] / row["reshape_s"]}

    def peers(self, rounds: int) -> dict[str, Any]:
        """Seconds of the peers' conversions of the same state, and of ours."""
        peers.write_peers(self.ours, self._path, 1)
        out = self._path / "out"
        ways: dict[str, Callable[[], Path]] = {
            "deepspeed_universal_s": lambda: peers.convert_to_universal(self._path, self.cores),
            "dcp_load_and_save_s": lambda: peers.reshard_dcp(self._path, out, self.cores),
            "reshape_s": lambda: self._reshape(Reader(self.ours), "out", TARGETS["one rank"]),
        }
        rows = [{name: self._timed(way) for name, way in ways.items()} for _ in range(rounds)]
        return {"median": _medians(rows), "rounds": rows}

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return state_bytes(Reader(self.ours))


@contextmanager
def _alone(realtime: bool) -> Iterator[None]:
    """At real-time priority, after a second for everything that waits."""
    if not realtime:
        yield
        return
    time.sleep(1.0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _model(megabytes: int) -> ModelConfig:
    """As many of moe-300m's layers as make about so many megabytes of fp32 state."""
    layer = BYTES_PER_PARAMETER * 25.2e6 / 1e6
    return ModelConfig(
        vocab_size=320,
        hidden_size=768,
        num_layers=max(1, round(megabytes / layer)),
        num_heads=12,
        num_kv_heads=4,
        head_dim=64,
        qk_norm=True,
        moe=MoEConfig(num_experts=16, expert_size=640),
    )


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(row[name] for row in rows), 4) for name in rows[0]}


def measure(path: Path, megabytes: int, rounds: int, realtime: bool) -> dict[str, Any]:
    """Every comparison, in new folders under `path`."""
    bench = ReshapeBench(path, megabytes, realtime)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in TARGETS}
    for turn in range(rounds):
        for name, layout in TARGETS.items():
            rows[name].append(bench.pair(layout, turn))
    return {
        "cores": bench.cores,
        "torch": torch.__version__,
        "realtime_pairs": realtime,
        "bytes": bench.nbytes,
        "from": SAVED,
        "beside_cp": {n: {"median": _medians(found), "rounds": found} for n, found in rows.items()},
        "peers": bench.peers(rounds),
        "load": os.getloadavg(),
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=600, help="megabytes of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--path", type=Path, help="an existing folder on the disk to measure")
    parser.add_argument("--realtime", action="store_true", help="pairs at real-time priority")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.path) as folder:
        found = measure(Path(folder), options.mb, options.rounds, options.realtime)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    print(f"{found['bytes'] / 1e6:.0f} MB, {found['cores']} cores; medians")
    for name, held in found["beside_cp"].items():
        row = held["median"]
        facts = f"cp {row['cp_s']:.2f} s, reshape {row['reshape_s']:.2f} s"
        print(f"{name}: {facts}, {row['share_of_cp']:.2f} of cp's speed")
    for name, seconds in found["peers"]["median"].items():
        print(f"{name.removesuffix('_s')}: {seconds:.2f} s")


if __name__ == "__main__":
    main()
