"""`moelstrom chaos` on a real run, and what it refuses before one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest
import torch
import yaml
from launch_runs import final_state, losses, make_dataset, run_worker, write_config

from moelstrom import UserError
from moelstrom.launch.commands.chaos import chaos

MAIN = "from moelstrom.launch.cli import main; main()"
STEPS = 40


def scenario(folder: Path, *faults: dict[str, object]) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump({"faults": list(faults)}))
    return path


class Options(TypedDict, total=False):
    """Of the command, beside the configuration."""

    scenario: Path
    random: int
    overrides: list[str]


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "give one of --scenario FILE and --random N"),
        ({"random": 5}, "add --set cluster.max_restarts="),
        ({"random": 1, "overrides": ["cluster.launcher=none"]}, "chaos needs workers that are"),
        ({"scenario": Path("none.yaml")}, "none.yaml: no such file"),
    ],
)
def test_mistakes_are_met_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Options, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        chaos("tiny", **options)
    assert words in str(caught.value) and not list(tmp_path.iterdir())


def test_both_sources_of_faults_are_one_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = scenario(tmp_path, {"kind": "kill", "at_step": 1})
    with pytest.raises(UserError, match="give one of"):
        chaos("tiny", scenario=path, random=1)


def test_a_run_that_is_there_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="there: holds a run already"):
        chaos("tiny", overrides=["output=there"], random=1)


def test_a_full_disk_needs_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moelstrom.launch.chaos.actions.MOST_FILLED", 0)
    config = write_config(tmp_path, make_dataset(tmp_path), tmp_path / "run")
    path = scenario(tmp_path, {"kind": "disk_full", "at_step": 1})
    with pytest.raises(UserError, match="disk_full would fill"):
        chaos(str(config), scenario=path)


@pytest.mark.slow
def test_a_run_survives_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    data = make_dataset(tmp_path)
    sections = {"steps": STEPS, "checkpoint": {"interval": 5, "keep": 3}}
    straight = write_config(tmp_path, data, tmp_path / "straight", **sections)
    assert run_worker(straight, ranks=2).returncode == 0
    config = write_config(tmp_path, data, tmp_path / "run", **sections)
    faults = scenario(
        tmp_path,
        {"kind": "kill", "at_step": 8, "rank": 1},
        {"kind": "slow", "at_step": 16, "rank": 0, "steps": 3, "factor": 2.0},
        {"kind": "corrupt", "at_step": 27, "rank": 0},
    )
    command = [sys.executable, "-c", MAIN, "chaos", str(config), "--scenario", str(faults)]
    ran = subprocess.run(
        [*command, "--json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["ok"] and report["restarts"] == 2 and report["not_reached"] == 0
    assert report["samples"] == {"lost": 0, "repeated": 0, "passed_over": 0}
    killed, slow, corrupt = report["recoveries"]
    assert killed["overcome"] and 0 < killed["down_s"] < 120 and killed["steps_lost"] <= 5 + 2
    assert slow["overcome"] and slow["steps_lost"] == 0 and slow["down_s"] is None
    # Back to the checkpoint before the damaged one.
    assert corrupt["overcome"] and 5 < corrupt["steps_lost"] <= 15 + 2
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    expected, found = (final_state(tmp_path / name, STEPS) for name in ("straight", "run"))
    assert set(expected) == set(found)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert (tmp_path / "run" / "chaos" / "chaos.png").exists()
