"""What a supervisor hears of one rank's training."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launch_runs import make_dataset, write_config

from moelstrom.cluster.events import EventWriter
from moelstrom.launch.config import load
from moelstrom.launch.train.channel import Channel
from moelstrom.launch.train.log import RunLog, select
from moelstrom.launch.train.loop import Training
from moelstrom.launch.train.records import EvalRecord, NoteRecord, to_json
from moelstrom.launch.worker import run


def events(config: Path) -> list[dict[str, Any]]:
    """Everything that the worker sends, beats aside."""
    read_fd, write_fd = os.pipe()
    writer = EventWriter(write_fd)
    assert run(load(str(config)), [lambda record: writer.emit(**to_json(record))], writer)
    os.close(write_fd)
    with os.fdopen(read_fd) as pipe:
        found = [json.loads(line) for line in pipe]
    return [event for event in found if event["kind"] != "alive"]


def test_steps_and_phases_are_announced(tmp_path: Path) -> None:
    sections = {"layout": {"dp": 1, "ep": 1}, "steps": 4, "checkpoint": {"interval": 2}}
    data = make_dataset(tmp_path)
    evaluation = {"evaluation": {"interval": 3, "batches": 1}}
    found = events(write_config(tmp_path, data, tmp_path / "run", **sections, **evaluation))
    told = [
        (e["kind"], e.get("name", e.get("step"))) for e in found if e["kind"] in ("phase", "step")
    ]
    # A phase ends where training goes on, so that a hang after it is found as soon as any.
    phases = [[("phase", name), ("phase", "train")] for name in ("load", "save", "evaluate")]
    load_, save, evaluate = phases
    steps = [("step", n) for n in range(5)]
    assert told == [
        *load_,
        *steps[1:3],
        *save,
        steps[3],
        *evaluate,
        steps[4],
        *save,
        *evaluate,
        *save,
    ]
    limits = [e["limit_s"] for e in found if e.get("name") == "evaluate"]
    # The first evaluation may compile; the next ones are measured by it.
    assert limits[0] == 900 and 30 <= limits[1] < 900
    assert all(e["limit_s"] == 0 for e in found if e.get("name") == "train")


def test_a_domain_without_targets_has_no_loss(tmp_path: Path) -> None:
    training: Any = object.__new__(Training)
    training.config = load("tiny")
    training.channel = Channel(EventWriter(None), RunLog(tmp_path, []), 900)
    sums = {"code": (6.0, 3), "empty": (0.0, 0)}
    training.loader = SimpleNamespace(domains=tuple(sums), valid=lambda domain, batches: [domain])
    training.engine = SimpleNamespace(steps_done=4, evaluate=lambda batches: sums[batches[0]])
    training._evaluate()
    training.channel.close()
    (found,), (note,) = select(tmp_path, EvalRecord), select(tmp_path, NoteRecord)
    assert found.loss == {"code": 2.0}
    assert note.message == "empty: its held-out part has no targets, so no loss"
