"""Steps that go wrong: judged alike by every rank and every restart, skipped, passed over, or the
end."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_runs import final_state, losses, make_dataset, run_here, run_worker, write_config
from typer.testing import CliRunner

from moelstrom import UserError
from moelstrom.launch.cli import app
from moelstrom.launch.config import HealthConfig
from moelstrom.launch.data.config import DataConfig
from moelstrom.launch.data.loader import Loader
from moelstrom.launch.train.health import Health, StepFault
from moelstrom.launch.train.log import read, select
from moelstrom.launch.train.records import ResumeRecord, StepRecord
from moelstrom.launch.train.rollback import (
    HEALTH_NAME,
    RollBack,
    RollBackError,
    passed_over,
    record_rollback,
    rollbacks,
)
from moelstrom.moe.checkpoint.folder import step_folder


@pytest.mark.parametrize(
    ("loss", "norm", "named"), [(math.nan, 1.0, "loss is nan"), (1.0, math.inf, "norm is inf")]
)
@pytest.mark.parametrize("policy", ["skip", "rollback", "stop"])
def test_no_number_is_a_fault(loss: float, norm: float, named: str, policy: str) -> None:
    health = Health(HealthConfig(nan=policy))
    assert health.fault(1.0, 1.0) is None and health.accept(1.0, 1.0)
    fault = health.fault(loss, norm)
    assert fault and fault.policy == policy and named in fault.text
    assert not health.accept(loss, norm) and health.asks == (policy == "skip")


def test_a_spike_is_one_against_a_full_window() -> None:
    health = Health(HealthConfig(spike="skip", spike_window=4, spike_factor=3))
    for _ in range(4):
        assert health.fault(2.0, 50.0) is None
        health.good(2.0, 1.0)
    assert health.fault(2.0, 3.0) is None
    norm, loss = health.fault(2.0, 3.1), health.fault(6.1, 1.0)
    assert norm and "norm is 3.1, its median 1" in norm.text
    assert loss and "loss is 6.1" in loss.text
    again = Health(health.config)
    again.load_state(health.state())
    assert again.fault(2.0, 3.1) == health.fault(2.0, 3.1)
    assert Health(HealthConfig(spike_window=1)).fault(1.0, 1e30) is None


def test_a_window_is_judged_by_its_median() -> None:
    """One step of a thousand times the usual does not raise what counts as usual."""
    health = Health(HealthConfig(spike="skip", spike_window=5, spike_factor=3))
    for loss in (1.0, 2.0, 4.0, 1e3, 2.0):
        health.good(loss, loss)
    assert health.fault(6.0, 6.0) is None
    found = health.fault(6.1, 1.0)
    assert found and "its median 2" in found.text


def test_a_resume_goes_on_counting_skips() -> None:
    """And from the same window: only its newest steps."""
    config = HealthConfig(nan="skip", spike="skip", spike_window=2, max_skips=2)
    health, fault = Health(config), StepFault("skip", "the loss is nan")
    for loss in (9.0, 1.0, 1.0):
        health.good(loss, 1.0)
    health.skipped(4, fault)
    again = Health(config)
    again.load_state(json.loads(json.dumps(health.state())))
    assert again.skips == 1 and again.fault(8.0, 1.0) is not None
    again.skipped(5, fault)
    with pytest.raises(UserError, match=r"step 6: "):
        again.skipped(6, fault)
    fresh = Health(config)
    fresh.load_state({})
    assert fresh.skips == 0 and fresh.fault(8.0, 1.0) is None


def test_too_many_skips_in_a_row_stop() -> None:
    health, fault = (
        Health(HealthConfig(nan="skip", max_skips=2)),
        StepFault("skip", "the loss is nan"),
    )
    health.skipped(1, fault)
    health.good(1.0, 1.0)
    health.skipped(3, fault)
    health.skipped(4, fault)
    with pytest.raises(UserError, match=r"step 5: .* 2 skipped .*health\.max_skips.*optimizer\.lr"):
        health.skipped(5, fault)


def test_the_file_of_roll_backs(tmp_path: Path) -> None:
    assert rollbacks(tmp_path) == []
    found = [RollBack(25, (96, 100)), RollBack(7, (24, 28), behind=6)]
    for back in found:
        record_rollback(tmp_path, back, "the loss is nan")
    file = tmp_path / HEALTH_NAME
    file.write_text(file.read_text() + '{"kind": "roll')
    assert rollbacks(tmp_path) == found
    for samples in ("[]", "[3]", "[5, 4]", "null"):
        file.write_text(f'{{"step": 3, "samples": {samples}}}\n')
        with pytest.raises(UserError, match=f"{HEALTH_NAME}: cannot be read .* restore the file"):
            rollbacks(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=3)


@settings(deadline=None, max_examples=40)
@given(drawn=RANGES)
def test_passed_samples_are_never_read(data: Path, drawn: list[tuple[int, int]]) -> None:
    """Every other one is, in order, whatever the ranges overlap or cut."""
    config = DataConfig(path=str(data), seq_len=16, micro_batch_size=1, global_batch_size=4)
    whole = Loader(config, seed=1, dp_rank=0, dp_size=1)
    order = [batch.tokens.tolist() for _ in range(30) for batch in whole.next()]
    loader = Loader(config, seed=1, dp_rank=0, dp_size=1)
    loader.pass_over([(first, first + size) for first, size in drawn])
    passed = {i for first, size in drawn for i in range(first, first + size)}
    expected = [tokens for i, tokens in enumerate(order) if i not in passed]
    found = [batch.tokens.tolist() for _ in range(9) for batch in loader.next()]
    assert found == expected[: len(found)]


def test_a_diverged_run_rolls_back_and_then_stops(data: Path, tmp_path: Path) -> None:
    """The worker without a supervisor ends with code 3, to be started again."""
    diverging = {**ONE, "optimizer": {"lr": 1e30}, "health": {"max_rollbacks": 1}}
    config = write_config(tmp_path, data, tmp_path / "run", **diverging)
    ran = run_worker(config)
    assert ran.returncode == 3 and "Traceback" not in ran.stderr
    assert "back to the last checkpoint, and past samples 8 to 15" in ran.stderr
    ran = run_worker(config)
    assert ran.returncode == 2
    assert "after 1 roll-backs (health.max_rollbacks); lower optimizer.lr" in ran.stderr
    assert passed_over(tmp_path / "run") == [(8, 16)]


SPIKES = {"spike_window": 6, "spike_factor": 1.15, "max_rollbacks": 6}
"""Small rises of the norm, as this run has some, are spikes."""
ONE = {"layout": {"dp": 1, "ep": 1}, "checkpoint": {"interval": 5}}


def train_on(config: Path) -> int:
    """Train on one rank here, again after each roll-back; returns how many there were."""
    for starts in range(10):
        try:
            assert run_here(config)
            return starts
        except RollBackError:
            continue
    raise AssertionError("roll-backs without end")


def check_same_end(expected: Path, found: Path) -> None:
    states = final_state(expected), final_state(found)
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_rolled_back_run_is_one_without_these_samples(data: Path, tmp_path: Path) -> None:
    """Each spike starts again before it, and the end is bitwise that of the run that was told of
    these samples before it began."""
    sections = {**ONE, "health": {"spike": "rollback", **SPIKES}}
    config = write_config(tmp_path, data, tmp_path / "rolled", **sections)
    starts = train_on(config)
    ranges = passed_over(tmp_path / "rolled")
    assert starts == len(ranges) > 0
    steps = {r.step: r.samples for r in select(tmp_path / "rolled", StepRecord)}
    assert steps[20] and steps[20][1] == 160 + 8 * len(ranges)
    assert not set(steps.values()) & set(ranges)
    told = tmp_path / "told"
    told.mkdir()
    shutil.copy(tmp_path / "rolled" / HEALTH_NAME, told)
    assert train_on(write_config(tmp_path, data, told, **sections)) == 0
    assert losses(told) == losses(tmp_path / "rolled")
    check_same_end(tmp_path / "rolled", told)


def test_the_command_alone_starts_again_by_itself(data: Path, tmp_path: Path) -> None:
    sections = {**ONE, "health": {"spike": "rollback", **SPIKES}, "cluster": {"launcher": "none"}}
    config = write_config(tmp_path, data, tmp_path / "run", **sections)
    ended = CliRunner().invoke(app, ["train", str(config)])
    assert ended.exit_code == 0 and "back to the last checkpoint" in ended.output
    assert passed_over(tmp_path / "run") and read(tmp_path / "run")[-1].kind == "done"


def test_a_spoilt_checkpoint_is_set_aside(data: Path, tmp_path: Path) -> None:
    """An update of step 11 ruins the weights, and they are saved before anything shows it. The
    second time that step 12 fails right after that checkpoint, the one before it is used."""
    output = tmp_path / "run"
    train_on(write_config(tmp_path, data, output, **ONE, steps=10))
    every = {**ONE, "checkpoint": {"interval": 1}}
    ruin = write_config(tmp_path, data, output, **every, optimizer={"lr": 1e30})
    for _ in range(2):
        with pytest.raises(RollBackError):
            run_here(ruin)
    assert [(back.step, back.behind) for back in rollbacks(output)] == [(12, None), (12, 11)]
    assert len(list((output / "checkpoints").glob("step-00000011.broken-*"))) == 1
    assert train_on(write_config(tmp_path, data, output, **ONE)) == 0
    assert select(output, ResumeRecord)[-1].step == 10


def test_a_resume_judges_and_skips_alike(data: Path, tmp_path: Path) -> None:
    sections = {**ONE, "health": {"spike": "skip", **SPIKES}}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train_on(write_config(tmp_path, data, straight, **sections))
    steps = select(straight, StepRecord)
    skipped = [r.step for r in steps if r.skipped]
    # Samples of a skipped step are used, and the step counts.
    assert skipped and [r.samples for r in steps] == [(8 * i, 8 * i + 8) for i in range(20)]
    assert all(r.loss is None for r in steps if r.skipped)
    middle = step_folder(Path("checkpoints"), 15)
    shutil.copytree(straight / middle, resumed / middle)
    train_on(write_config(tmp_path, data, resumed, **sections))
    after = [r.step for r in select(resumed, StepRecord) if r.skipped]
    assert after and after == [step for step in skipped if step > 15]
    check_same_end(straight, resumed)
