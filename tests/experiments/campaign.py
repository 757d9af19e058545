"""Runs under faults on two hosts of one Ray cluster (network namespaces), each held against the
run that met none: what every fault cost, and whether the end is bitwise the same. Needs root.

    python tests/campaign.py --runs 8 --faults 13 --json FILE --plot FILE
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from launch_runs import final_state, losses, make_dataset, write_config
from rich.console import Console
from rich.progress import track
from rich.table import Table
from two_hosts import HEAD, OTHER, PORT, Hosts, two_hosts, wait_for_nodes

from moelstrom.launch.chaos.injector import Injection
from moelstrom.launch.chaos.recovery import Recovery, Report, Samples, phase_summary
from moelstrom.launch.chaos.report import REPORT
from moelstrom.launch.chaos.report import draw as draw_picture
from moelstrom.launch.chaos.scenario import Draw, Scenario, draw

INTERVAL = 5
DISK_BYTES = 48 * 2**20
WEIGHTS = {
    **{"kill": 4.0, "stop": 2.0, "hang": 2.0, "corrupt": 1.0, "slow": 1.0, "nan": 1.0},
    **{"disk_full": 1.0, "node_lost": 1.0},
}
LOST_S = 10.0
EXTRA_STEPS = 600
"""Beside those between the faults: training goes on while a disk is full or a node away."""
ELASTIC_KINDS = ("node_lost", "kill", "node_lost", "hang")
"""In turn: a run whose number of ranks follows the nodes can lose one again and again."""
RUN_TIMEOUT_S = 1500
MAIN = "from moelstrom.launch.cli import main; main()"
CLUSTER: dict[str, Any] = {
    "address": f"{HEAD}:{PORT}",
    "strategy": "SPREAD",
    "heartbeat_timeout_s": 3,
    "hang_floor_s": 3,
    "max_restarts": 1000,
}


@dataclass(frozen=True)
class Run:
    """One run under faults. `mode` is where a restart reads: `disk`, or `replicas` (in memory); or
    `elastic`, where the number of ranks follows the nodes. `same`: whether all losses and the last
    checkpoint are bitwise those of the run without faults (but with the same NaN ones, for these
    pass over samples); None where the number of ranks changed. `loss_gap`: the largest difference
    of a step's loss from that run."""

    seed: int
    mode: str
    report: Report
    same: bool | None
    loss_gap: float


@dataclass(frozen=True)
class Reference:
    """The end of a run that met no fault: each step's loss, every tensor of its checkpoint."""

    losses: dict[int, float]
    end: dict[str, torch.Tensor]


@dataclass
class Ground:
    """What all runs of a campaign share."""

    hosts: Hosts
    folder: Path
    data: Path
    steps: int
    references: dict[tuple[Any, ...], "Reference"] = field(default_factory=dict)

    def saves(self, name: str) -> Path:
        """A run's checkpoints, on the small disk."""
        return self.folder / "disk" / name / "checkpoints"

    def config(self, name: str, replicas: bool = False, **cluster: Any) -> Path:
        """A run's config."""
        checkpoint = {"interval": INTERVAL, "keep": 3, "path": str(self.saves(name))}
        return write_config(
            self.folder,
            self.data,
            self.folder / name,
            steps=self.steps,
            checkpoint={**checkpoint, **({"replicas": True} if replicas else {})},
            health={"nan": "rollback", "max_rollbacks": 1000},
            cluster={**CLUSTER, **cluster},
        )

    def moelstrom(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """The command on the first host."""
        command = self.hosts.inside(0, [sys.executable, "-c", MAIN, *words])
        env = {**self.hosts.env, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=RUN_TIMEOUT_S
        )


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """A small file system that a run may fill."""
    path.mkdir()
    options = ["-o", f"size={DISK_BYTES}"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def kept_alive(hosts: Hosts) -> Iterator[None]:
    """Start the second host's Ray node again whenever it ends: Ray's head gives up a node whose
    network is away for long, and that node then leaves."""
    closed = threading.Event()

    def keep() -> None:
        while not closed.wait(0.5):
            if hosts.nodes[-1].poll() is not None:
                hosts.start(1, OTHER, f"--address={HEAD}:{PORT}")
                closed.wait(3)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


@contextmanager
def ground(steps: int) -> Iterator[Ground]:
    """Two hosts, the data, and a folder for the runs."""
    with tempfile.TemporaryDirectory(prefix="moel-campaign-") as name:
        folder = Path(name)
        # The disk first: what is mounted later the hosts do not see.
        with disk(folder / "disk"), two_hosts(folder) as hosts, kept_alive(hosts):
            wait_for_nodes(hosts)
            yield Ground(hosts, folder, make_dataset(folder), steps)


def plan(seed: int, faults: int, spacing: int, hosts: Hosts, kinds: Sequence[str]) -> Scenario:
    """The faults of one run."""
    link = ["ip", "-n", hosts.names[1], "link", "set", "moelb"]
    return draw(
        Draw(
            faults=faults,
            seed=seed,
            spacing=spacing,
            weights={kind: WEIGHTS[kind] for kind in kinds},
            node=OTHER,
            lost_s=LOST_S,
            cut=(*link, "down"),
            heal=(*link, "up"),
        ),
        world_size=2,
    )


def elastic_plan(faults: int, spacing: int, commands: Scenario) -> Scenario:
    """Faults of a run whose number of ranks changes; rank 0 is on the node that stays."""
    kinds = [ELASTIC_KINDS[index % len(ELASTIC_KINDS)] for index in range(faults)]
    lost = {"node": OTHER, "duration_s": LOST_S + 5}
    entries = [
        {"kind": kind, "at_step": spacing * (i + 1), **(lost if kind == "node_lost" else {})}
        for i, kind in enumerate(kinds)
    ]
    return Scenario.model_validate({"faults": entries, "cut": commands.cut, "heal": commands.heal})


def under_faults(ground: Ground, name: str, scenario: Scenario, mode: str = "disk") -> Report:
    """Run `moelstrom chaos`."""
    # Each host then holds one rank, so that a lost one leaves room for one only.
    elastic = {"elastic": True, "cpus_per_worker": 2, "rejoin_wait_s": 3}
    cluster = elastic if mode == "elastic" else {}
    config = ground.config(name, mode == "replicas", **cluster)
    path = ground.folder / f"{name}.scenario.yaml"
    path.write_text(yaml.safe_dump(scenario.model_dump(mode="json", exclude_none=True)))
    ran = ground.moelstrom("chaos", str(config), "--scenario", str(path))
    written = ground.folder / name / "chaos" / REPORT
    assert written.exists(), (ran.stdout + ran.stderr)[-3000:]
    return as_report(json.loads(written.read_text()))


def as_report(values: dict[str, Any]) -> Report:
    """A report from its JSON."""
    recoveries = [
        Recovery(**{**entry, "fault": Injection(**entry["fault"])})
        for entry in values["recoveries"]
    ]
    counted = None if values["samples"] is None else Samples(**values["samples"])
    rest = {k: v for k, v in values.items() if k not in ("ok", "phases", "recoveries", "samples")}
    return Report(**rest, recoveries=recoveries, samples=counted)


def reference(ground: Ground, report: Report) -> Reference:
    """The run that met none of the faults, but passes over the same samples; made once."""
    spoilt = [r.fault for r in report.recoveries if r.fault.kind == "nan"]
    key = tuple((fault.step, fault.rank) for fault in spoilt)
    if key not in ground.references:
        name = f"reference-{len(ground.references)}"
        if spoilt:
            faults = [{"kind": "nan", "at_step": step, "rank": rank} for step, rank in key]
            assert under_faults(ground, name, Scenario.model_validate({"faults": faults})).ok
        else:
            ran = ground.moelstrom("train", str(ground.config(name)))
            assert ran.returncode == 0, ran.stderr[-3000:]
        ground.references[key] = take_end(ground, name)
    return ground.references[key]


def take_end(ground: Ground, name: str) -> Reference:
    """How a finished run ended; makes room on the disk."""
    saves = ground.saves(name).parent
    end = Reference(losses(ground.folder / name), final_state(saves, ground.steps))
    shutil.rmtree(saves)
    return end


def one_run(ground: Ground, seed: int, scenario: Scenario, mode: str) -> Run:
    """A run under faults, held against the one without."""
    name = f"run-{seed}"
    report = under_faults(ground, name, scenario, mode)
    if report.exit_code:
        return Run(seed, mode, report, False, float("nan"))
    found, expected = take_end(ground, name), reference(ground, report)
    gap = max(abs(found.losses[step] - expected.losses[step]) for step in expected.losses)
    same = found.losses == expected.losses and equal(found.end, expected.end)
    return Run(seed, mode, report, None if mode == "elastic" else same, gap)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bitwise."""
    return set(a) == set(b) and all(_bytes(a[name]) == _bytes(b[name]) for name in a)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def summary(runs: Sequence[Run], wall_s: float) -> dict[str, Any]:
    """The campaign in numbers that can be compared and committed."""
    recoveries = [recovery for run in runs for recovery in run.report.recoveries]
    kinds = sorted({recovery.fault.kind for recovery in recoveries})
    return {
        "machine": f"{os.cpu_count()} CPU cores, two network namespaces",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "checkpoint_interval": INTERVAL,
        "heartbeat_timeout_s": CLUSTER["heartbeat_timeout_s"],
        "hang_floor_s": CLUSTER["hang_floor_s"],
        "wall_s": round(wall_s, 1),
        "runs": len(runs),
        "finished": sum(run.report.exit_code == 0 for run in runs),
        "same_end": sum(run.same is True for run in runs),
        "compared": sum(run.same is not None for run in runs),
        "faults": len(recoveries),
        "overcome": sum(recovery.overcome for recovery in recoveries),
        "not_reached": sum(run.report.not_reached for run in runs),
        "samples_lost": total(runs, "lost"),
        "samples_repeated": total(runs, "repeated"),
        "most_steps_lost": {
            kind: max(r.steps_lost for r in recoveries if r.fault.kind == kind) for kind in kinds
        },
        "goodput": statistics.median(run.report.goodput for run in runs),
        "phases": phase_summary(recoveries),
        "phases_by_kind": {
            kind: phase_summary([r for r in recoveries if r.fault.kind == kind]) for kind in kinds
        },
        "each_run": [as_row(run) for run in runs],
    }


def total(runs: Sequence[Run], name: str) -> int | None:
    """Samples over all runs; None where a log does not say."""
    counted = [run.report.samples for run in runs]
    return None if None in counted else sum(getattr(samples, name) for samples in counted)


def as_row(run: Run) -> dict[str, Any]:
    """A run without its events."""
    report = asdict(run.report)
    sizes = [e["ranks"] for e in report.pop("events") if e.get("phase") == "scaled"]
    faults = [
        {"kind": r["fault"]["kind"], "step": r["fault"]["step"], "rank": r["fault"]["rank"]}
        | {name: value for name, value in r.items() if name != "fault"}
        for r in report.pop("recoveries")
    ]
    own = {"seed": run.seed, "mode": run.mode, "same": run.same, "loss_gap": run.loss_gap}
    own["sizes"] = sizes
    return {**own, **report, "each_fault": faults}


def show(found: dict[str, Any]) -> Table:
    """A row for each kind of fault."""
    table = Table("fault", "times", "phase", "median (s)", "p95 (s)", "max (s)", "most steps lost")
    for kind, phases in [*found["phases_by_kind"].items(), ("all", found["phases"])]:
        for phase, numbers in phases.items():
            cells = (f"{numbers[key]:.2f}" for key in ("median", "p95", "max"))
            lost = str(found["most_steps_lost"].get(kind, ""))
            table.add_row(kind, str(numbers["count"]), phase, *cells, lost)
    return table


def campaign(options: argparse.Namespace) -> tuple[dict[str, Any], list[Run]]:
    """All runs."""
    began, runs = time.monotonic(), []
    kinds = options.kinds.split(",") if options.kinds else list(WEIGHTS)
    steps = options.spacing * (options.faults + 2) + EXTRA_STEPS
    with ground(steps) as here:
        for index in track(range(options.runs), "runs", console=Console(stderr=True)):
            seed, mode = options.seed + index, mode_of(index, options)
            scenario = plan(seed, options.faults, options.spacing, here.hosts, kinds)
            if mode == "elastic":
                scenario = elastic_plan(options.faults, options.spacing, scenario)
            runs.append(one_run(here, seed, scenario, mode))
            last = runs[-1]
            print(f"run {seed}: same {last.same}, {json.dumps(as_row(last))[:400]}", flush=True)
            found = summary(runs, time.monotonic() - began)
            write(found, runs, options)
    return found, runs


def write(found: dict[str, Any], runs: Sequence[Run], options: argparse.Namespace) -> None:
    """After each run: a campaign that is cut short leaves what it found."""
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        draw_picture([run.report for run in runs], options.plot)


def mode_of(index: int, options: argparse.Namespace) -> str:
    """Of the run of this index: first those from disk, last the elastic ones."""
    left = options.runs - index
    if left <= options.elastic:
        return "elastic"
    return "replicas" if left <= options.elastic + options.replicas else "disk"


def main() -> int:
    """Print the tables; 1 if anything was not overcome, lost, or ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--elastic", type=int, default=0, help="so many of the runs, at the end")
    parser.add_argument("--replicas", type=int, default=0, help="so many, before those")
    parser.add_argument("--faults", type=int, default=13, help="of each run")
    parser.add_argument("--spacing", type=int, default=16, help="steps between faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="kill,stop,...; empty: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found, runs = campaign(options)
    Console(width=120).print(show(found))
    short = {k: v for k, v in found.items() if not isinstance(v, dict | list)}
    print(json.dumps(short, indent=1))
    return int(not all(run.report.ok and run.same is not False for run in runs))


if __name__ == "__main__":
    sys.exit(main())
