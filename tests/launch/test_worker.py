"""The worker as a plain torch.distributed program, and resuming from its checkpoints."""

import shutil
from pathlib import Path

import pytest
import torch
from launch_runs import STEPS, final_state, losses, make_dataset, run_here, run_worker, write_config

from moelstrom.launch.config import RESOLVED, load
from moelstrom.launch.train.log import read, select
from moelstrom.launch.train.records import EvalRecord, RouterRecord, RunRecord, StepRecord
from moelstrom.moe.checkpoint.folder import step_folder

FLAT = {"name": "wsd", "decay_fraction": 0.0}
"""A learning rate that does not hang on the run's length."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a native run under torchrun that was never interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    ran = run_worker(write_config(folder, data, folder / "run"), ranks=2)
    assert ran.returncode == 0, ran.stderr
    assert f"step {STEPS}/{STEPS}" in ran.stdout and "validation loss: asyncio" in ran.stdout
    return folder / "run"


def resume_from_the_middle(straight: Path, output: Path) -> None:
    """Lay out what a run that died after step 10 leaves."""
    middle = step_folder(Path("checkpoints"), 10)
    shutil.copytree(straight / middle, output / middle)


def test_torchrun_learns_and_logs(straight: Path) -> None:
    found = losses(straight)
    assert list(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1] - 0.5
    kinds = {record.kind for record in read(straight)}
    assert kinds >= {"run", "step", "checkpoint", "eval", "done"}
    assert list((straight / "tensorboard").glob("events.out.tfevents.*"))
    routed = {r.step: r.expert_load for r in select(straight, RouterRecord)}
    # One MoE layer; each of 8 x 64 tokens goes to 2 of its 4 experts.
    assert list(routed) == [10, 20] and [len(layer) for layer in routed[20]] == [4]
    assert sum(routed[20][0]) == 8 * 64 * 2


def test_one_process_without_a_launcher(data: Path, straight: Path, tmp_path: Path) -> None:
    """The same run on one rank: the layout changes no loss beyond fp32's rounding."""
    config = write_config(tmp_path, data, tmp_path / "run", layout={"dp": 1, "ep": 1})
    ran = run_worker(config)
    assert ran.returncode == 0, ran.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(straight), abs=2e-4)


def test_resume_is_bitwise(data: Path, straight: Path, tmp_path: Path) -> None:
    resume_from_the_middle(straight, tmp_path / "run")
    ran = run_worker(write_config(tmp_path, data, tmp_path / "run"), ranks=2)
    assert ran.returncode == 0, ran.stderr
    assert "resumed from" in ran.stdout
    check_same_end(straight, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
def test_deepspeed_resume_is_bitwise(data: Path, tmp_path: Path, zero: int) -> None:
    sections = {"engine": {"name": "deepspeed"}, "layout": {"zero": zero}}
    config = write_config(tmp_path, data, tmp_path / "straight", **sections)
    assert run_worker(config, ranks=2).returncode == 0
    resume_from_the_middle(tmp_path / "straight", tmp_path / "run")
    ran = run_worker(write_config(tmp_path, data, tmp_path / "run", **sections), ranks=2)
    assert ran.returncode == 0, ran.stderr
    check_same_end(tmp_path / "straight", tmp_path / "run")


def check_same_end(straight: Path, resumed: Path) -> None:
    after = {step: loss for step, loss in losses(straight).items() if step > 10}
    assert len(after) == 10 and losses(resumed) == after
    ends = [[r.loss for r in select(run, EvalRecord)] for run in (straight, resumed)]
    assert ends[0] == ends[1]
    expected, found = final_state(straight), final_state(resumed)
    assert set(expected) == set(found) and len(found) > 50
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_resume_on_another_layout(data: Path, straight: Path, tmp_path: Path) -> None:
    """From two ranks to one: the samples that come next, the same losses but for rounding."""
    resume_from_the_middle(straight, tmp_path / "run")
    config = write_config(tmp_path, data, tmp_path / "run", layout={"dp": 1, "ep": 1})
    ran = run_worker(config)
    assert ran.returncode == 0, ran.stderr
    after = {step: loss for step, loss in losses(straight).items() if step > 10}
    assert losses(tmp_path / "run") == pytest.approx(after, abs=2e-4)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, ["layout", "is 2, but 1 processes", "layout.dp=1"]),
        (
            {
                "layout": {"dp": 1, "ep": 1},
                "optimizer": {"lr": 1e30},
                "health": {"nan": "stop"},
            },
            ["step 2: the ", " is nan; lower optimizer.lr"],
        ),
        ({"layout": {"dp": 1, "ep": 1}, "data": {"path": "nowhere"}}, ["data.path", "nowhere"]),
    ],
)
def test_a_users_mistake(
    data: Path, tmp_path: Path, sections: dict[str, dict], words: list[str]
) -> None:
    ran = run_worker(write_config(tmp_path, data, tmp_path / "run", **sections))
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), last


def test_another_model_is_refused(data: Path, straight: Path, tmp_path: Path) -> None:
    """And leaves the config in the folder that fits the checkpoints there."""
    resume_from_the_middle(straight, tmp_path / "run")
    (tmp_path / "run" / RESOLVED).write_text("of the run before")
    sections = {"layout": {"dp": 1, "ep": 1}, "model": {"num_layers": 4}}
    ran = run_worker(write_config(tmp_path, data, tmp_path / "run", **sections))
    assert ran.returncode == 2
    assert "model.num_layers: the checkpoint has 2, this run 4" in ran.stderr
    assert (tmp_path / "run" / RESOLVED).read_text() == "of the run before"


def test_start_from_another_runs_checkpoint(data: Path, straight: Path, tmp_path: Path) -> None:
    """With its step, optimizer and data position; the run's own checkpoints come first later."""
    sections = {"layout": {"dp": 1, "ep": 1}, "steps": 12, "schedule": FLAT}
    other = straight / step_folder(Path("checkpoints"), 10)
    checkpoint = {"load": str(other), "interval": 0}
    config = write_config(tmp_path, data, tmp_path / "run", **sections, checkpoint=checkpoint)
    assert run_here(config)
    steps = select(tmp_path / "run", StepRecord)
    assert [r.samples for r in steps] == [(80, 88), (88, 96)]
    assert run_here(config)
    starts = [r.step for r in select(tmp_path / "run", RunRecord)]
    assert starts == [10, 12]


def test_every_step_says_where_its_time_went(straight: Path) -> None:
    for record in select(straight, StepRecord):
        parts = record.parts
        assert parts and record.step_s
        assert set(parts) == {"data", "compute", "wait", "update"} and min(parts.values()) > 0
        assert sum(parts.values()) == pytest.approx(record.step_s, rel=0.1, abs=2e-3)


def test_the_config_that_ran_is_left(straight: Path) -> None:
    assert load(str(straight / RESOLVED)).folder == straight
