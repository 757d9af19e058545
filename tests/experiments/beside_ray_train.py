"""One scenario of kills, stops and hangs, under our supervisor and under Ray Train's TorchTrainer:
the same loop, data, checkpoints and faults, on one host.

    python tests/beside_ray_train.py --packages FOLDER --faults 8 --json FILE

FOLDER holds Ray Train's own dependencies: pip install --target FOLDER --no-deps pyarrow pandas ...
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from launch_runs import losses, make_dataset, write_config

from moelstrom.launch.chaos.scenario import Draw, Scenario, draw
from moelstrom.launch.train.log import LOG_NAME, select
from moelstrom.launch.train.records import StepRecord

MAIN = "from moelstrom.launch.cli import main; main()"
PEER = str(Path(__file__).with_name("ray_train_peer.py"))
WEIGHTS = {"kill": 4.0, "stop": 1.0, "hang": 1.0}
TIMEOUT_S = 3600
KEPT = ("exit_code", "message", "steps", "restarts", "not_reached", "samples", "phases")


def run(command: list[str], folder: Path, packages: Path) -> dict[str, Any]:
    """A command's last line of output, as JSON."""
    paths = [os.environ.get("PYTHONPATH", ""), str(packages)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, paths))}
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ran.stdout, ran.stderr[-3000:]
    text = ran.stdout[ran.stdout.index("{") :]
    values: dict[str, Any] = json.loads(text)
    return values


def judged(output: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A run in numbers. Goodput, from the log of the run alone: the time of the steps that count,
    over the time from the first record to the last, so neither side's first start is in it."""
    lines = [json.loads(line) for line in (output / LOG_NAME).read_text().splitlines()]
    wall = lines[-1]["time"] - lines[0]["time"]
    useful = sum(r.step_s or 0.0 for r in select(output, StepRecord))
    faults = [
        {**r["fault"], "down_s": r["down_s"], "detect_s": r["detect_s"], "lost": r["steps_lost"]}
        for r in report["recoveries"]
    ]
    waited = report.get("capped", 0) * report.get("cap_s", 0.0)
    own = {"wall_s": wall, "useful_s": useful, "goodput": useful / wall, "faults": faults}
    # As if an operator had been there at once.
    own["goodput_without_caps"] = useful / (wall - waited)
    return own | {name: report[name] for name in (*KEPT, "capped", "cap_s") if name in report}


def compare(folder: Path, scenario: Scenario, steps: int, packages: Path) -> dict[str, Any]:
    """Both runs, one after the other."""
    data = make_dataset(folder)
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario.model_dump(mode="json", exclude_none=True)))
    cluster = {"heartbeat_timeout_s": 3, "hang_floor_s": 3, "max_restarts": 1000}
    sections = {"steps": steps, "checkpoint": {"interval": 5, "keep": 3}, "cluster": cluster}
    configs = {
        name: write_config(folder, data, folder / name, **sections)
        for name in ("ours", "ray_train")
    }
    chaos = ["-c", MAIN, "chaos", str(configs["ours"]), "--scenario", str(path), "--json"]
    peer = [PEER, str(configs["ray_train"]), str(path), str(folder / "peer")]
    found = {
        "ours": judged(folder / "ours", run(chaos, folder, packages)),
        "ray_train": judged(folder / "ray_train", run(peer, folder, packages)),
    }
    same = losses(folder / "ours") == losses(folder / "ray_train")
    kinds = [fault.kind for fault in scenario.faults]
    return {"cores": os.cpu_count(), "faults": kinds, "same_losses": same, **found}


def main() -> int:
    """Print both goodputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--faults", type=int, default=8)
    parser.add_argument("--spacing", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plan = Draw(faults=options.faults, seed=options.seed, spacing=options.spacing, weights=WEIGHTS)
    scenario, steps = draw(plan, world_size=2), options.spacing * (options.faults + 2)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), scenario, steps, options.packages)
    for name in ("ours", "ray_train"):
        print(f"{name}: goodput {found[name]['goodput']:.1%} of {found[name]['wall_s']:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
