"""The policy of going back: how often, to which checkpoint, and what is kept of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moelstrom import UserError
from moelstrom.cluster.events import EventWriter
from moelstrom.launch.config import RunConfig, load
from moelstrom.launch.train.channel import Channel
from moelstrom.launch.train.health import StepFault
from moelstrom.launch.train.log import RunLog, select
from moelstrom.launch.train.process_group import process_group
from moelstrom.launch.train.records import RolledBackRecord
from moelstrom.launch.train.rollback import RollBackError, RollBacks, rollbacks

FAULT = StepFault("rollback", "the loss is nan")


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group(torch.device("cpu")):
        yield


def config(folder: Path) -> RunConfig:
    return load("tiny", [f"output={folder}", "health.max_rollbacks=2"])


def go_back(folder: Path, step: int, samples: tuple[int, int], start: int) -> str:
    """A start of the run that meets one bad step; what it tells."""
    closed: list[bool] = []
    channel = Channel(EventWriter(None), RunLog(folder, []), 900)
    policy = RollBacks(config(folder), channel)
    assert policy.passed_over == [back.samples for back in rollbacks(folder)]
    with pytest.raises(RollBackError) as raised:
        policy.go_back(step, FAULT, samples, start, lambda: closed.append(True))
    assert closed and select(folder, RolledBackRecord)[-1].message == str(raised.value)
    return str(raised.value)


def test_a_checkpoint_that_spoils_the_step_after_it_twice_is_set_aside(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints" / "step-00000011"
    saved.mkdir(parents=True)
    words = go_back(tmp_path, 12, (88, 96), start=11)
    assert (
        words == "step 12: the loss is nan: back to the last checkpoint, and past samples 88 to 95"
    )
    assert saved.is_dir()
    assert "back to the checkpoint before step 11, now" in go_back(
        tmp_path, 12, (96, 104), start=11
    )
    assert not saved.exists()
    found = rollbacks(tmp_path)
    assert [(b.step, b.samples, b.behind) for b in found] == [
        (12, (88, 96), None),
        (12, (96, 104), 11),
    ]
    policy = RollBacks(config(tmp_path), Channel(EventWriter(None), RunLog(tmp_path, []), 900))
    assert policy.below == 11
    with pytest.raises(UserError, match=r"step 13: .* after 2 roll-backs .*; lower optimizer.lr"):
        policy.go_back(13, FAULT, (104, 112), 10, lambda: None)


@pytest.mark.parametrize(("step", "start"), [(13, 11), (12, -1)])
def test_other_steps_leave_the_checkpoint(tmp_path: Path, step: int, start: int) -> None:
    for samples in ((0, 8), (8, 16)):
        assert "back to the last checkpoint" in go_back(tmp_path, step, samples, start)
    assert [back.behind for back in rollbacks(tmp_path)] == [None, None]
