"""Every kind of record: bytes that do not change, files of other versions, words for each field."""

import ast
import inspect
import json
from dataclasses import fields
from typing import Any

import pytest

from moelstrom.launch.train import records
from moelstrom.launch.train.records import KINDS, Record, StepRecord, from_json, to_json

STEP = {"step": 2, "step_s": 0.5, "parts": {"data": 0.1, "compute": 0.2, "wait": 0, "update": 0}}
FIRST_RELEASE = [
    '{"time": 1.5, "kind": "run", "step": 0, "steps": 20, "ranks": 2, "engine": {"name": "moe"}, '
    '"layout": {"dp": 2}, "parameters": {"total": 3}, "device": "H100", "moelstrom": "0.1.0", '
    '"torch": "2.13.0", "python": "3.11.7"}',
    '{"time": 1.5, "kind": "resume", "step": 4, "folder": "runs/x/checkpoints/step-00000004"}',
    '{"time": 1.5, "kind": "step", "step": 1, "step_s": 0.125, "parts": {"data": 0.25, "compute": '
    '0.5, "wait": 0.0, "update": 1e-06}, "samples": [0, 8], "lr": 0.003, "targets": 512, '
    '"tokens_per_s": 4887.25, "expert_balance": 1.5, "loss": 5.75, "aux_loss": 0.0, "grad_norm": '
    '1.25, "mfu": 0.5}',
    '{"time": 1.5, "kind": "step", "step": 2, "step_s": 0.125, "samples": [8, 16], "lr": 0.003, '
    '"targets": 512, "tokens_per_s": 4887.25, "expert_balance": 1.5, "skipped": true}',
    '{"time": 1.5, "kind": "router", "step": 5, "expert_load": [[328, 360], [211, 125]]}',
    '{"time": 1.5, "kind": "eval", "step": 5, "loss": {"code": 2.5, "prose": 3.0}}',
    '{"time": 1.5, "kind": "checkpoint", "step": 5, "stall_ms": 6.5, "write_s": 0.25, "bytes": 99}',
    '{"time": 1.5, "kind": "checkpoint_note", "step": 5, "message": "tried again"}',
    '{"time": 1.5, "kind": "note", "message": "one sentence"}',
    '{"time": 1.5, "kind": "skipped", "step": 5, "message": "left out"}',
    '{"time": 1.5, "kind": "rolled_back", "step": 5, "message": "back to the last checkpoint"}',
    '{"time": 1.5, "kind": "preempted", "step": 5, "message": "saved on SIGTERM"}',
    '{"time": 1.5, "kind": "done", "step": 20}',
]
"""Lines as the release that had no classes for them wrote them: they are read for ever."""


def test_every_kind_is_read_and_written_as_ever() -> None:
    found = [from_json(json.loads(line)) for line in FIRST_RELEASE]
    assert {record.kind for record in found if record} == set(KINDS)
    assert [json.dumps(to_json(record)) for record in found if record] == FIRST_RELEASE


def test_the_registry_has_every_class() -> None:
    made = [cls for _, cls in inspect.getmembers(records, inspect.isclass)]
    kinds = {cls for cls in made if issubclass(cls, Record) and "kind" in vars(cls)}
    assert kinds == set(KINDS.values()) and all(name == cls.kind for name, cls in KINDS.items())


def test_every_field_is_described() -> None:
    """A sentence follows each field: it says the unit, which the name may not."""
    for cls in ast.walk(ast.parse(inspect.getsource(records))):
        if not isinstance(cls, ast.ClassDef):
            continue
        assert ast.get_docstring(cls), cls.name
        bases = {base.id for base in cls.bases if isinstance(base, ast.Name)}
        for entry, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            # `kind` speaks for itself, and `step` is told in `Record`, or in the class's words.
            named = isinstance(entry, ast.AnnAssign) and ast.unparse(entry.target)
            if named and named != "kind" and not (named == "step" and bases):
                assert isinstance(after, ast.Expr), f"{cls.name}.{named}"


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "of tomorrow", "step": 2},
        {"kind": "step"},
        {"kind": "step", "step": "two"},
        {"kind": "step", "step": 2, "loss": {"code": 1.0}},
        {"kind": "eval", "step": 2, "loss": 3.0},
        {"kind": ["step"], "step": 2},
        {"step": 2},
        ["step"],
        None,
    ],
)
def test_what_is_no_record_of_ours(value: Any) -> None:
    assert from_json(value) is None


def test_fields_of_newer_versions_are_passed_over() -> None:
    found = from_json({"kind": "step", "time": 2, **STEP, "loss": 1.0, "of_tomorrow": [1]})
    assert found == StepRecord(time=2.0, loss=1.0, **STEP)  # type: ignore[arg-type]
    assert "of_tomorrow" not in to_json(found) and len(fields(found)) > len(to_json(found))
