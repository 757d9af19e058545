"""A run's log survives kills: what was whole stays readable, and the last word on a step counts."""

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moelstrom.launch.train.log import LOG_NAME, RunLog, read, select
from moelstrom.launch.train.records import (
    EvalRecord,
    NoteRecord,
    Record,
    RunRecord,
    StepRecord,
    to_json,
)


def write(folder: Path, *records: Record) -> list[Record]:
    """Log the records in a session of their own; returns what a listener heard."""
    heard: list[Record] = []
    log = RunLog(folder, [heard.append])
    for record in records:
        log(record)
    log.close()
    return heard


def step(number: int, loss: float) -> StepRecord:
    return StepRecord(step=number, loss=loss, time=1.5 * number)


def test_records_are_written_and_heard(tmp_path: Path) -> None:
    records = [step(1, 4.0), EvalRecord(step=1, loss={"code": 2.0})]
    heard = write(tmp_path / "new" / "run", *records)
    assert heard == records and heard[1].time > 1e9
    assert read(tmp_path / "new" / "run") == heard


def test_tensorboard_has_the_scalars(tmp_path: Path) -> None:
    note = NoteRecord(message="no step, no point")
    write(tmp_path, step(3, 4.0), EvalRecord(step=3, loss={"code": 2.0}), note)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(board.Tags()["scalars"]) == ["eval/loss/code", "step/loss"]
    assert [(e.step, e.value) for e in board.Scalars("step/loss")] == [(3, 4.0)]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    write(tmp_path, RunRecord(step=0), step(1, 5.0), step(2, 4.0), step(3, 3.5))
    write(tmp_path, RunRecord(step=1), step(2, 4.5), step(3, 3.0), step(4, 2.0))
    assert select(tmp_path, StepRecord) == [step(1, 5.0), step(2, 4.5), step(3, 3.0), step(4, 2.0)]
    order = [(r.kind, r.step) for r in read(tmp_path)]
    assert order == [("run", 0), ("step", 1), ("run", 1), ("step", 2), ("step", 3), ("step", 4)]


def test_records_without_a_step_are_all_kept(tmp_path: Path) -> None:
    notes = [NoteRecord(message=str(i)) for i in range(3)]
    write(tmp_path, *notes, NoteRecord(step=1, message="of a step"))
    assert len(read(tmp_path)) == 4


def test_a_cut_line_spoils_no_other(tmp_path: Path) -> None:
    write(tmp_path, step(1, 5.0), step(2, 4.0))
    file = tmp_path / LOG_NAME
    file.write_bytes(file.read_bytes()[:-9])
    assert read(tmp_path) == [step(1, 5.0)]
    write(tmp_path, step(2, 3.0))
    assert read(tmp_path) == [step(1, 5.0), step(2, 3.0)]


def test_a_cut_newline_costs_no_record(tmp_path: Path) -> None:
    write(tmp_path, step(1, 5.0))
    file = tmp_path / LOG_NAME
    file.write_bytes(file.read_bytes()[:-1])
    write(tmp_path, step(2, 3.0))
    assert read(tmp_path) == [step(1, 5.0), step(2, 3.0)]
    assert file.read_bytes().count(b"\n") == 2


def test_no_log_has_no_records(tmp_path: Path) -> None:
    assert read(tmp_path) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
ODD = st.dictionaries(st.sampled_from(["kind", "step", "loss"]), JSON) | JSON
LINES = st.lists(st.binary(max_size=12) | ODD.map(json.dumps).map(str.encode), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(before=LINES, after=LINES)
def test_what_is_no_record_is_passed_over(
    tmp_path: Path, before: list[bytes], after: list[bytes]
) -> None:
    good = json.dumps(to_json(step(7, 2.0))).encode()
    (tmp_path / LOG_NAME).write_bytes(b"\n".join([*before, good, b"[" * 9999, *after]))
    records = read(tmp_path)
    assert step(7, 2.0) in records or any(b'"step": 7' in line for line in after)
    assert all(isinstance(r.step, int | None) for r in records)
