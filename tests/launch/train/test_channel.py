"""What rank 0 logs, what the others tell, and how long a phase may take."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moelstrom.cluster.events import EventWriter
from moelstrom.launch.train import channel
from moelstrom.launch.train.channel import Channel
from moelstrom.launch.train.log import RunLog, read
from moelstrom.launch.train.records import NoteRecord, SkippedRecord, StepRecord


def told(make: Any) -> list[dict[str, Any]]:
    """The events of a rank on which `make` acts, beats aside."""
    read_fd, write_fd = os.pipe()
    writer = EventWriter(write_fd)
    make(writer)
    os.close(write_fd)
    with os.fdopen(read_fd) as pipe:
        return [event for line in pipe if (event := json.loads(line))["kind"] != "alive"]


def test_rank_0_logs_and_others_tell(tmp_path: Path) -> None:
    skipped = SkippedRecord(step=3, message="left out")

    def act(events: EventWriter) -> None:
        for log in (RunLog(tmp_path, []), None):
            made = Channel(events, log, 900)
            made.record(StepRecord(step=3, loss=1.0))
            made.note("a note")
            made.tell(skipped)
            made.close()

    (event,) = told(act)
    assert (event["kind"], event["step"], event["message"]) == ("skipped", 3, "left out")
    assert event["time"] == skipped.time
    assert [type(record) for record in read(tmp_path)] == [StepRecord, NoteRecord, SkippedRecord]


def test_only_a_later_evaluation_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(channel.time, "perf_counter", lambda: now[0])

    def act(events: EventWriter) -> None:
        made = Channel(events, None, 900)
        for name, seconds in (("evaluate", 5), ("evaluate", 2), ("evaluate", 1), ("save", 50)):
            with made.phase(name):  # type: ignore[arg-type]
                now[0] += seconds
        with made.phase("save"):
            pass

    limits = [(e["name"], e["limit_s"]) for e in told(act) if e["name"] != "train"]
    evaluations = [("evaluate", 900), ("evaluate", 50), ("evaluate", 50)]
    assert limits == [*evaluations, ("save", 900), ("save", 900)]
