"""A picture and a last table, whatever a run has to show."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from rich.console import Console

from moelstrom.launch.config import RESOLVED, RunConfig, dump, load
from moelstrom.launch.train.log import LOG_NAME
from moelstrom.launch.train.picture import draw
from moelstrom.launch.train.records import from_json
from moelstrom.launch.train.show import finish_view, next_steps


def step(number: int) -> dict[str, Any]:
    speed = {"tokens_per_s": 1e3, "expert_balance": 1.5, "grad_norm": 0.5, "lr": 1e-3}
    return {"kind": "step", "step": number, "loss": 5.0 / number, **speed}


def evaluation(number: int, **loss: float) -> dict[str, Any]:
    return {"kind": "eval", "step": number, "loss": loss}


EDGES = [{"kind": "run", "step": 9}, {"kind": "note", "message": "x"}, {"kind": "done", "step": 9}]
RUNS = {
    "no log": None,
    "no records": [],
    "resumed at its end": [*EDGES, evaluation(9, code=2.0)],
    "one step": [step(1)],
    "steps and evaluations": [*map(step, range(1, 20)), evaluation(10, a=3.0), evaluation(19, a=2)],
    "a new domain": [step(1), evaluation(1, a=3.0), step(2), evaluation(2, a=2.0, b=4.0)],
    "values that no axis has": [step(1) | {"grad_norm": float("inf"), "loss": float("nan")}],
}


@pytest.mark.parametrize("name", RUNS)
def test_draw(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a $x^$ run"
    folder.mkdir()
    records = RUNS[name]
    if records is not None:
        (folder / LOG_NAME).write_text("".join(json.dumps(r) + "\n" for r in records))
    path = draw(folder)
    assert path == folder / "run.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    assert not pyplot.get_fignums()


def test_draw_shows_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = RUNS["a new domain"] or []
    (tmp_path / LOG_NAME).write_text("".join(json.dumps(r) + "\n" for r in records))
    drawn: list[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    draw(tmp_path)
    monkeypatch.undo()
    axis = drawn[0].axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines == {
        "training": [[1, 5.0], [2, 2.5]],
        "validation, a": [[1, 3.0], [2, 2.0]],
        "validation, b": [[2, 4.0]],
    }
    assert drawn[0].get_suptitle() == tmp_path.name
    pyplot.close(drawn[0])


def text_of(view: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(view)
    return out.getvalue()


def test_the_last_evaluation_is_shown() -> None:
    found = [evaluation(1, code=3.0), step(1), evaluation(2, code=2.0, prose=800.0)]
    records = [record for value in found if (record := from_json(value))]
    table = text_of(finish_view(load("tiny"), records))
    assert "2.0000" in table and "7.39" in table and "3.0000" not in table
    assert "800.0000" in table and "inf" in table
    assert "domain" in text_of(finish_view(load("tiny"), []))


def suggestions(config: RunConfig) -> dict[str, str]:
    config.folder.mkdir(parents=True, exist_ok=True)
    (config.folder / RESOLVED).write_text(dump(config))
    out = io.StringIO()
    next_steps(config, Console(file=out, width=40))
    lines = [line.strip().partition(": ") for line in out.getvalue().splitlines()]
    return {text: command for text, _, command in lines}


def test_next_steps_are_runs_of_the_same_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOELSTROM_COMMAND", "./run")
    folder = tmp_path / "a [/b] run"
    file = f"'{folder / RESOLVED}'"
    given = suggestions(
        load("tiny", [f"output={folder}", "steps=30", "schedule={name: wsd, decay_fraction: 0}"])
    )
    assert given["curves"].endswith(f"tensorboard --logdir '{folder / 'tensorboard'}'")
    assert given["train on, twice as long"] == f"./run train {file} --set steps=60"
    assert given["the deepspeed engine"] == (
        f"./run train {file} --set engine.name=deepspeed --set name=tiny-deepspeed "
        f"--set 'output={folder}-deepspeed'"
    )


def test_no_next_step_is_a_mistake(tmp_path: Path) -> None:
    muon = suggestions(load("tiny", [f"output={tmp_path}", "optimizer.name=muon"]))
    assert "the deepspeed engine" not in muon and "train on, twice as long" not in muon
    wsd = suggestions(load("tiny", [f"output={tmp_path}", "schedule={name: wsd}"]))
    assert "train on, twice as long, back on the plateau" in wsd
    overrides = [f"output={tmp_path}", "engine.name=deepspeed", "layout.zero=2"]
    assert "the native engine" not in suggestions(load("tiny", overrides))
    native = suggestions(load("tiny", [*overrides, "layout.zero=1"]))["the native engine"]
    assert "--set engine.name=native --set name=tiny-native" in native
