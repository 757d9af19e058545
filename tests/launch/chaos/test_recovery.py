"""What is made of a run's events and log."""

import json
from pathlib import Path
from typing import Any

import pytest

from moelstrom.cluster.events import Milestone
from moelstrom.launch.chaos.injector import Injection
from moelstrom.launch.chaos.recovery import Recorder, Samples, judge, phase_summary, samples
from moelstrom.launch.chaos.report import fault_table, phase_table, verdict, write
from moelstrom.launch.train.records import StepRecord


def fault(kind: str, time: float, step: int, restarts: bool = True) -> Injection:
    return Injection(0, kind, time, step, time, 0, "here", "", restarts)


def recorded(*events: tuple[float, str, dict[str, Any]]) -> Recorder:
    recorder = Recorder()
    for time, kind, fields in events:
        recorder.on_event(0, {"kind": kind, "time": time, **fields})
    return recorder


def phase(time: float, name: str, restart: int) -> tuple[float, str, dict[str, Any]]:
    return time, "timeline", {"phase": name, "restart": restart}


def step(time: float, number: int) -> tuple[float, str, dict[str, Any]]:
    return time, "step", {"step": number}


KILLED = (
    phase(100, "started", 0),
    step(101, 1),
    step(102, 2),
    step(103, 3),
    phase(103.5, "fault", 0),
    phase(104, "detected", 0),
    phase(104.1, "killed", 0),
    phase(106, "regrouped", 1),
    (109, "resume", {"step": 1, "folder": "step-1"}),
    step(109.5, 2),
    phase(109.5, "resumed", 1),
    step(110, 3),
    step(111, 4),
    phase(112, "ended", 1),
)


def log(folder: Path, ranges: dict[int, tuple[int, int]] | None = None, again: bool = True) -> None:
    """Three steps, then perhaps from the second on again."""
    parts = [(100, 0, (1, 2, 3))] + ([(109.1, 1, (2, 3, 4))] if again else [])
    with (folder / "metrics.jsonl").open("w") as file:
        for time, start, steps in parts:
            records: list[dict[str, object]] = [{"kind": "run", "time": time, "step": start}]
            for number in steps:
                samples = {"samples": ranges[number]} if ranges else {}
                records.append({"kind": "step", "step": number, "step_s": 0.6, **samples})
            file.writelines(json.dumps(record) + "\n" for record in records)
        file.write('{"kind": "st')


def test_the_phases_of_a_kill(tmp_path: Path) -> None:
    log(tmp_path)
    done = [fault("kill", 103.5, 3)]
    report = judge(tmp_path, recorded(*KILLED), done, faults=2, exit_code=0, message="")
    (found,) = report.recoveries
    assert (found.detect_s, found.regroup_s, found.load_s) == (0.5, 2.0, 3.0)
    assert (found.first_step_s, found.down_s, found.steps_lost) == (0.5, 6.0, 2)
    assert found.overcome and report.ok and report.restarts == 1 and report.not_reached == 1
    # Four steps of 0.6 s count; two were done twice.
    assert report.wall_s == 12 and report.goodput == pytest.approx(4 * 0.6 / 12)
    assert report.samples is None
    assert verdict(report) == (
        "1 of 1 faults overcome, 1 restarts; exit code 0 after step "
        f"{report.steps}; goodput 20.0% of 12 s; 1 faults not reached: give the run more steps"
    )
    reached = judge(tmp_path, recorded(*KILLED), done, faults=1, exit_code=0, message="")
    assert "not reached" not in verdict(reached)


def test_a_run_that_ends_at_the_fault(tmp_path: Path) -> None:
    log(tmp_path, again=False)
    events = [*KILLED[:7], phase(105, "ended", 0)]
    done = [fault("kill", 103.5, 3)]
    report = judge(tmp_path, recorded(*events), done, faults=1, exit_code=1, message="gone")
    (found,) = report.recoveries
    assert not found.overcome and not report.ok
    assert (found.detect_s, found.regroup_s, found.down_s, found.steps_lost) == (0.5, None, None, 0)
    assert "0 of 1 faults overcome" in verdict(report)


def test_each_fault_gets_its_own_events(tmp_path: Path) -> None:
    log(tmp_path)
    done = [fault("nan", 101.5, 1, restarts=False), fault("kill", 103.5, 3)]
    first, second = judge(
        tmp_path,
        recorded(*KILLED[:2], (101.7, "skipped", {"step": 1, "message": "left out"}), *KILLED[2:]),
        done,
        faults=2,
        exit_code=0,
        message="",
    ).recoveries
    assert first.overcome and first.detect_s == pytest.approx(0.2) and first.down_s is None
    assert second.steps_lost == 2 and second.detect_s == 0.5


def test_samples_of_the_final_history() -> None:
    whole = [StepRecord(step=1 + i, samples=(8 * i, 8 * i + 8)) for i in range(3)]
    assert samples(whole, []) == Samples(0, 0, 0)
    assert samples([whole[0], whole[2]], []) == Samples(8, 0, 0)
    assert samples([whole[0], whole[2]], [(8, 16)]) == Samples(0, 0, 8)
    assert samples([*whole, StepRecord(step=4, samples=(20, 26))], []) == Samples(0, 4, 0)
    assert samples([StepRecord(step=1, samples=(8, 16))], []) == Samples(8, 0, 0)
    assert samples([*whole, StepRecord(step=4)], []) is None


def test_lost_samples_are_no_success(tmp_path: Path) -> None:
    done = [fault("kill", 103.5, 3)]
    for last, lost in (((24, 32), 0), ((32, 40), 8)):
        log(tmp_path, {1: (0, 8), 2: (8, 16), 3: (16, 24), 4: last})
        report = judge(tmp_path, recorded(*KILLED), done, faults=1, exit_code=0, message="")
        assert report.samples == Samples(lost, 0, 0) and report.ok == (lost == 0)


def test_the_report_is_written_and_drawn(tmp_path: Path) -> None:
    log(tmp_path)
    done = [fault("kill", 103.5, 3)]
    report = judge(tmp_path, recorded(*KILLED), done, faults=1, exit_code=0, message="")
    written, picture = write(report, tmp_path / "chaos")
    values = json.loads(written.read_text())
    assert values["ok"] and values["recoveries"][0]["steps_lost"] == 2
    assert values["phases"]["down_s"] == {"count": 1, "median": 6.0, "p95": 6.0, "max": 6.0}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert fault_table(report).row_count == 1 and phase_table(report.recoveries).row_count == 5


def test_percentiles() -> None:
    found = [recovery for seconds in range(1, 21) for recovery in judge_one(float(seconds))]
    assert phase_summary(found)["detect_s"] == {"count": 20, "median": 10.5, "p95": 19.0, "max": 20}


def judge_one(detect_s: float) -> list[Any]:
    from moelstrom.launch.chaos.recovery import recoveries

    events = [Milestone(phase="detected", restart=0, time=10 + detect_s)]
    return recoveries(events, [fault("kill", 10, 1)], [], True)
