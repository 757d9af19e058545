"""Kill ranks of a real run under Ray at random moments, also during saves; every run must end as
the one that was never interrupted.

    python tests/kills.py --trials 20 [--engine deepspeed] [--json FILE]
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from launch_runs import final_state, losses, make_dataset, write_config
from rich.console import Console
from rich.progress import track
from rich.table import Table

from moelstrom.cluster.backends.ray.session import ray_session
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.spec import Event, Outcome, WorkerSpec
from moelstrom.cluster.supervisor import run_group

TRIAL_STEPS = 40
SECTIONS: dict[str, Any] = {
    "steps": TRIAL_STEPS,
    "checkpoint": {"interval": 4, "keep": 3},
    # Big enough that a save takes longer than a few steps.
    "model": {"hidden_size": 128, "moe": {"num_experts": 8, "top_k": 2, "expert_size": 256}},
}


@dataclass(frozen=True)
class Trial:
    """One run that was killed. `aim` is what the killer waited for, `saving` whether a save was
    under way at the kill; `lost` counts steps done twice, `down_s` is from the kill to the first
    step after it."""

    seed: int
    aim: str
    ranks: list[int]
    saving: bool
    step: int
    restarts: int
    lost: int
    down_s: float
    same: bool


class Killer:
    """Sends SIGKILL once, when the aim is met; `on_event` sees the run's events."""

    def __init__(self, output: Path, seed: int) -> None:
        choice = random.Random(seed)
        self.aim = choice.choice(["step", "save", "start"])
        self.ranks = choice.choice([[0], [1], [0, 1]])
        self._at = choice.randrange(1, TRIAL_STEPS - 1)
        self._delay = choice.uniform(0, 3.0 if self.aim == "start" else 0.06)
        self._saves = output / "checkpoints"
        self._pids: dict[int, int] = {}
        self._once = threading.Lock()
        self.step, self.saving, self.steps = 0, False, 0

    def on_event(self, rank: int | None, event: Event) -> None:
        kind = event["kind"]
        if kind == "spawned" and event["restart"] == 0:
            self._pids[rank or 0] = event["pid"]
            if self.aim == "start" and len(self._pids) == 2:
                self._arm(lambda: True)
        if kind == "step" and rank == 0:
            self.steps += 1
            self.step = event["step"] if self._pids else self.step
            if self.aim != "start" and event["step"] == self._at:
                self._arm(self._is_saving if self.aim == "save" else lambda: True)

    def _arm(self, ready: Callable[[], bool]) -> None:
        if self._once.acquire(blocking=False):
            threading.Thread(target=self._kill, args=(ready, dict(self._pids)), daemon=True).start()

    def _is_saving(self) -> bool:
        return any(self._saves.glob(".tmp-step-*"))

    def _kill(self, ready: Callable[[], bool], pids: dict[int, int]) -> None:
        while not ready():
            time.sleep(0.0005)
        time.sleep(self._delay)
        self.saving = self._is_saving()
        self._pids.clear()
        for rank in self.ranks:
            # A run that ended before its kill makes no trial.
            if rank in pids and Path(f"/proc/{pids[rank]}").exists():
                os.kill(pids[rank], signal.SIGKILL)


def run(config: Path, on_event: Callable[[int | None, Event], None]) -> Outcome:
    """Train under Ray on two ranks."""
    command = (sys.executable, "-m", "moelstrom.launch.worker", "--config", str(config))
    return run_group(WorkerSpec(command, 2), ClusterConfig(), on_event=on_event)


def campaign(folder: Path, trials: int, engine: str = "native") -> list[Trial]:
    """The uninterrupted run, then `trials` runs that were really killed."""
    data = make_dataset(folder)
    sections = {**SECTIONS, "engine": {"name": engine}}
    done: list[Trial] = []
    with ray_session(ClusterConfig(), world_size=2):
        straight = folder / "straight"
        config = write_config(folder, data, straight, **sections)
        assert run(config, lambda rank, event: None).exit_code == 0
        seeds = iter(range(10 * trials))
        for _ in track(range(trials), "kills", console=Console(stderr=True)):
            trial = None
            while trial is None:
                seed = next(seeds)
                output = folder / f"trial-{seed}"
                config = write_config(folder, data, output, **sections)
                trial = attempt(config, output, straight, seed)
            done.append(trial)
    return done


def attempt(config: Path, output: Path, straight: Path, seed: int) -> Trial | None:
    """One killed run; None if it ended before the kill."""
    killer = Killer(output, seed)
    outcome = run(config, killer.on_event)
    if outcome.restarts == 0:
        return None
    resumed = [event for event in outcome.timeline if event["phase"] == "resumed"]
    return Trial(
        seed=seed,
        aim=killer.aim,
        ranks=killer.ranks,
        saving=killer.saving,
        step=killer.step,
        restarts=outcome.restarts,
        lost=killer.steps - TRIAL_STEPS,
        down_s=resumed[-1]["since_fault_s"] if resumed else 0.0,
        same=outcome.exit_code == 0 and same_end(straight, output),
    )


def same_end(straight: Path, output: Path) -> bool:
    """Whether all losses and every tensor of the last checkpoint are bitwise equal."""
    expected, found = (final_state(run, TRIAL_STEPS) for run in (straight, output))
    return (
        losses(straight) == losses(output)
        and set(expected) == set(found)
        and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    )


def show(trials: list[Trial]) -> Table:
    """A row a trial."""
    table = Table("seed", "aim", "ranks", "saving", "at step", "steps lost", "down (s)", "same end")
    for t in trials:
        row = (t.seed, t.aim, t.ranks, t.saving, t.step, t.lost, f"{t.down_s:.2f}", t.same)
        table.add_row(*map(str, row))
    return table


def main() -> int:
    """Print the table; 1 if any run ended otherwise than the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--engine", choices=["native", "deepspeed"], default="native")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = campaign(Path(folder), options.trials, options.engine)
    Console().print(show(trials))
    recovered = sum(trial.same for trial in trials)
    print(f"{recovered} of {len(trials)} kills recovered, bitwise")
    if options.json:
        options.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=2) + "\n")
    return int(recovered < len(trials))


if __name__ == "__main__":
    sys.exit(main())
