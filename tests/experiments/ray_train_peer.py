"""The same training loop and faults under Ray Train's TorchTrainer, to compare with ours.

    python tests/ray_train_peer.py CONFIG SCENARIO FOLDER    # prints one JSON object

Ray Train needs pyarrow and pandas, which are none of our dependencies. It takes a stopped or hung
worker for a slow one, so this program kills what made no step for CAP_S, as an operator would.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from moelstrom.cluster.backends.ray.session import ray_session
from moelstrom.cluster.config import ClusterConfig
from moelstrom.launch.chaos import control
from moelstrom.launch.chaos.injector import Injector
from moelstrom.launch.chaos.recovery import Recorder, judge
from moelstrom.launch.chaos.scenario import load as load_scenario
from moelstrom.launch.config import load
from moelstrom.launch.train.log import LOG_NAME

CAP_S = 120.0
POLL_S = 0.01


def loop(settings: dict[str, str]) -> None:
    """What each Ray Train worker runs: our loop, in the process group that Ray Train has made."""
    import torch

    from moelstrom.cluster.events import EventWriter
    from moelstrom.launch.train.loop import Training
    from moelstrom.launch.train.preempt import Preemption

    rank = torch.distributed.get_rank()
    note = Path(settings["folder"]) / f"start-{time.time_ns()}-{rank}"
    note.with_suffix(".new").write_text(json.dumps({"rank": rank, "pid": os.getpid()}))
    note.with_suffix(".new").rename(note)
    device, events = torch.device("cpu"), EventWriter(None)
    Training(load(settings["config"]), device, [], events, Preemption()).run()


class Watcher:
    """Turns what the workers write into the events that our supervisor would have told."""

    def __init__(self, folder: Path, log: Path, world_size: int) -> None:
        self.recorder = Recorder()
        self.capped = 0
        self.listeners = [self.recorder.on_event]
        self._folder, self._log, self._world_size = folder, log, world_size
        self._notes: set[Path] = set()
        self._starts: list[dict[str, int]] = []
        self._read, self._moved = 0, time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            self._take_starts()
            self._take_records()
            if time.monotonic() - self._moved > CAP_S:
                self._kill()
        self._take_records()

    def _tell(self, rank: int, event: dict[str, Any]) -> None:
        self._moved = time.monotonic()
        for listener in self.listeners:
            listener(rank, event)

    def _take_starts(self) -> None:
        for note in sorted(set(self._folder.glob("start-*-[0-9]")) - self._notes):
            self._notes.add(note)
            start = json.loads(note.read_text())
            restart = len(self._starts) // self._world_size
            self._starts.append(start)
            now = {"time": time.time(), "restart": restart}
            event = {"kind": "spawned", "pid": start["pid"], "node": "127.0.0.1", **now}
            self._tell(start["rank"], event)
            if len(self._starts) % self._world_size == 0:
                phase = "regrouped" if restart else "started"
                self._tell(0, {"kind": "timeline", "phase": phase, **now})

    def _take_records(self) -> None:
        if not self._log.exists():
            return
        with self._log.open() as file:
            file.seek(self._read)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    return
                self._read = file.tell()
                with contextlib.suppress(ValueError):
                    self._tell(0, json.loads(line))

    def _kill(self) -> None:
        self._moved = time.monotonic()
        self.capped += 1
        for start in self._starts[-self._world_size :]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(start["pid"], signal.SIGKILL)


def main(config: str, scenario: str, folder: Path) -> int:
    """Train to the end under the scenario's faults."""
    folder.mkdir(parents=True)
    # A local Ray hands its environment on to its workers.
    os.environ |= {control.VARIABLE: str(folder / "control"), "OMP_NUM_THREADS": "1"}
    run, faults = load(config), load_scenario(Path(scenario))
    world_size = run.layout.world_size
    checkpoints = Path(run.placed_checkpoint.path)
    injector = Injector(faults, folder / "control", checkpoints, lambda text: None)
    with (
        ray_session(ClusterConfig(), world_size),
        Watcher(folder, run.folder / LOG_NAME, world_size) as watcher,
        injector,
    ):
        watcher.listeners.append(injector.on_event)
        problem = fit(config, folder, world_size, len(faults.faults))
    report = judge(
        run.folder,
        watcher.recorder,
        injector.done,
        faults=len(faults.faults),
        exit_code=int(bool(problem)),
        message=problem,
    )
    values = {**report.as_json(), "capped": watcher.capped, "cap_s": CAP_S}
    print(json.dumps({name: value for name, value in values.items() if name != "events"}))
    return 0


def fit(config: str, folder: Path, world_size: int, faults: int) -> str:
    """Run the trainer; returns why it failed, if it did."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        loop,
        train_loop_config={"config": config, "folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=world_size),
        run_config=RunConfig(
            name="peer",
            storage_path=str(folder / "storage"),
            failure_config=FailureConfig(max_failures=2 * faults),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
