"""Every record of a training run: a line of `metrics.jsonl`, and on its way to the supervisor an
event. What the cluster itself tells is listed in `cluster/events.py`.

A new kind is one class here and its place in `KINDS`. Files outlive versions: a field or a kind
that is not known is passed over, and a field that came later than the first release is optional.
"""

import time
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from ...cluster.events import Known, read
from ...cluster.spec import Event


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all kinds have. A field that is None does not apply, and is left out of the JSON."""

    kind: ClassVar[str]
    time: float = field(default_factory=time.time)
    """UNIX seconds."""
    step: int | None = None
    """Optimizer steps done, since the run's very first. A kind that always has it says `field()`,
    which takes the default away."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """A start of the run's processes, the first one or after a stop; `step` is where it goes on."""

    kind: ClassVar[str] = "run"
    step: int = field()
    steps: int | None = None
    """Steps that the config asks for."""
    ranks: int | None = None
    """Processes that train, one a device."""
    engine: dict[str, Any] | None = None
    """The config's section."""
    layout: dict[str, Any] | None = None
    """The config's section."""
    parameters: dict[str, int] | None = None
    """Of the model: `total`, `active` for one token, in `experts`, in the `embedding`."""
    device: str | None = None
    """Name of rank 0's device."""
    moelstrom: str | None = None
    """Version."""
    torch: str | None = None
    """Version."""
    python: str | None = None
    """Version."""


@dataclass(frozen=True, kw_only=True)
class ResumeRecord(Record):
    """A checkpoint was loaded; `step` is the checkpoint's."""

    kind: ClassVar[str] = "resume"
    step: int = field()
    folder: str
    """Where it lies; of a copy in memory, where that lies."""


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """An optimizer step; of a rank other than 0, for its supervisor, `step_s` and `parts` alone."""

    kind: ClassVar[str] = "step"
    step: int = field()
    step_s: float | None = None
    """Wall seconds, data included."""
    parts: dict[str, float] | None = None
    """Seconds in each stage: `data`, `compute`, `wait`, `update` (see moe/stages.py)."""
    samples: tuple[int, int] | None = None
    """Indices [first, end) of the sequences that it was made of."""
    lr: float | None = None
    """Learning rate of its update."""
    targets: int | None = None
    """Tokens that were predicted, in the global batch."""
    tokens_per_s: float | None = None
    """Tokens of the global batch, targets or not, over `step_s`."""
    expert_balance: float | None = None
    """The largest expert load over its layer's mean, the worst layer's; 1 is even."""
    skipped: bool | None = None
    """True where the update was left out; then there is no loss, which may be no number."""
    loss: float | None = None
    """Mean cross-entropy in nats over the global batch."""
    aux_loss: float | None = None
    """Weighted balancing losses that were added to it."""
    grad_norm: float | None = None
    """Global norm before clipping."""
    mfu: float | None = None
    """FLOPs of forward and backward passes (recomputation not counted) over what the devices could
    do in `step_s` at their dense bf16 peak; only for devices whose peak is known."""


@dataclass(frozen=True, kw_only=True)
class RouterRecord(Record):
    """The experts' loads, at the steps of `log_interval`."""

    kind: ClassVar[str] = "router"
    step: int = field()
    expert_load: list[list[int]]
    """Tokens of the global batch that each expert of each MoE layer got: [layers, experts]."""


@dataclass(frozen=True, kw_only=True)
class EvalRecord(Record):
    """An evaluation on the held-out part."""

    kind: ClassVar[str] = "eval"
    step: int = field()
    loss: dict[str, float]
    """Mean cross-entropy in nats of each domain."""


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord(Record):
    """A committed checkpoint; it comes when the last byte is on disk."""

    kind: ClassVar[str] = "checkpoint"
    step: int = field()
    stall_ms: float
    """Milliseconds that training stood still."""
    write_s: float
    """Seconds from the start of writing to the commit."""
    bytes: int
    """Over all ranks."""


@dataclass(frozen=True, kw_only=True)
class MessageRecord(Record):
    """Something to tell, in words."""

    message: str
    """One sentence for a person."""


@dataclass(frozen=True, kw_only=True)
class CheckpointNoteRecord(MessageRecord):
    """What an operator should know about checkpoints, such as a save that failed."""

    kind: ClassVar[str] = "checkpoint_note"


@dataclass(frozen=True, kw_only=True)
class NoteRecord(MessageRecord):
    """What an operator should know about anything else."""

    kind: ClassVar[str] = "note"


@dataclass(frozen=True, kw_only=True)
class SkippedRecord(MessageRecord):
    """A step whose update was left out (`health`)."""

    kind: ClassVar[str] = "skipped"
    step: int = field()


@dataclass(frozen=True, kw_only=True)
class RolledBackRecord(MessageRecord):
    """A step after which the run goes back to a checkpoint (`health`)."""

    kind: ClassVar[str] = "rolled_back"
    step: int = field()


@dataclass(frozen=True, kw_only=True)
class PreemptedRecord(MessageRecord):
    """The run has saved and leaves on a signal."""

    kind: ClassVar[str] = "preempted"
    step: int = field()


@dataclass(frozen=True, kw_only=True)
class DoneRecord(Record):
    """The run has come to its end, saved and evaluated."""

    kind: ClassVar[str] = "done"
    step: int = field()


KINDS: dict[str, type[Record]] = {
    cls.kind: cls
    for cls in (
        RunRecord,
        ResumeRecord,
        StepRecord,
        RouterRecord,
        EvalRecord,
        CheckpointRecord,
        CheckpointNoteRecord,
        NoteRecord,
        SkippedRecord,
        RolledBackRecord,
        PreemptedRecord,
        DoneRecord,
    )
}
"""Every kind by its name in the JSON."""


def to_json(record: Record) -> dict[str, Any]:
    """The record as a JSON object: `time`, `kind`, then its fields."""
    values = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    told = {name: value for name, value in values.items() if value is not None}
    return {"time": told.pop("time"), "kind": record.kind, **told}


def from_json(value: Any) -> Record | None:
    """The record of a JSON object; None for what is none, and for a kind that is not known."""
    name = _kind(value)
    if name not in KINDS:
        return None
    try:
        return _adapter(name).validate_python({"time": 0.0, **value})
    except ValidationError:
        return None


def heard(event: Event) -> Record | Known | None:
    """An event of a supervisor: a worker's record, else what the cluster tells; None for others."""
    return from_json(event) or read(event)


def _kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else ""


@cache
def _adapter(name: str) -> "TypeAdapter[Record]":
    return TypeAdapter(KINDS[name])
