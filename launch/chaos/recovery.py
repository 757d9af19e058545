"""What a run made of its faults: how long each phase took, and which steps and samples it cost."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...cluster.events import Known, Milestone, Spawned, wire
from ...cluster.spec import Event
from ..train.log import history, read
from ..train.records import (
    CheckpointNoteRecord,
    Record,
    ResumeRecord,
    RolledBackRecord,
    RunRecord,
    SkippedRecord,
    StepRecord,
    heard,
    to_json,
)
from ..train.rollback import passed_over
from .injector import Injection

PHASES = ("detect_s", "regroup_s", "load_s", "first_step_s", "down_s")
NOTICES = {
    "nan": {"skipped", "rolled_back"},
    "slow": {"straggler"},
    "disk_full": {"checkpoint_note"},
}
"""Kinds of event, or phases of the time line, by which a fault is noticed without a restart."""
Told = Record | Known
KEPT = (
    *(Milestone, Spawned, RunRecord, ResumeRecord),
    *(SkippedRecord, RolledBackRecord, CheckpointNoteRecord),
)


class Recorder:
    """Keeps the events of a run that its faults are judged by: few, and small."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.told: list[tuple[int | None, Told]] = []

    def on_event(self, rank: int | None, event: Event) -> None:
        """Take an event of `run_group`."""
        told = heard(event)
        if isinstance(told, StepRecord) and rank == 0:
            self.told.append((rank, StepRecord(step=told.step, time=told.time)))
        elif isinstance(told, KEPT):
            self.told.append((rank, told))

    def as_json(self) -> list[Event]:
        """Every event with its rank."""
        return [{**_plain(told), "rank": rank} for rank, told in self.told]


def _plain(told: Told) -> Event:
    return to_json(told) if isinstance(told, Record) else wire(told)


@dataclass(frozen=True)
class Recovery:
    """A fault and its end. Seconds: until it was `detect`ed, from there until all processes ran
    again (`regroup`), until the checkpoint was loaded (`load`), until a step was done
    (`first_step`), and from the fault to that step (`down`); None where there was no such phase.
    `steps_lost` were done twice. `overcome`: the run went past the step of the fault."""

    fault: Injection
    overcome: bool
    detect_s: float | None
    regroup_s: float | None
    load_s: float | None
    first_step_s: float | None
    down_s: float | None
    steps_lost: int


@dataclass(frozen=True)
class Samples:
    """Of the final history (the last record of each step): indices that no step used, that two
    used, and that a policy passed over on purpose. None: the log does not say."""

    lost: int
    repeated: int
    passed_over: int


@dataclass(frozen=True)
class Report:
    """One run under faults. `goodput` is the time of the steps that count over the whole time."""

    exit_code: int
    message: str
    steps: int
    restarts: int
    not_reached: int
    """Faults of the scenario whose moment never came."""
    wall_s: float
    goodput: float
    samples: Samples | None
    recoveries: list[Recovery]
    events: list[Event] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the run finished, every fault was overcome and no sample was lost or repeated."""
        whole = self.samples is None or not (self.samples.lost or self.samples.repeated)
        return self.exit_code == 0 and whole and all(r.overcome for r in self.recoveries)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"ok": self.ok, "phases": phase_summary(self.recoveries), **asdict(self)}


def judge(
    folder: Path,
    recorder: Recorder,
    done: Sequence[Injection],
    *,
    faults: int,
    exit_code: int,
    message: str,
) -> Report:
    """The report of a run whose output is `folder`; `faults` is how many it should have met."""
    steps = {r.step: r for r in read(folder) if isinstance(r, StepRecord)}
    events = [told for _, told in recorder.told]
    times = [event.time for event in events] or [0.0]
    wall = max(times) - min(times)
    return Report(
        exit_code=exit_code,
        message=message,
        steps=max(steps, default=0),
        restarts=max((e.restart for e in events if isinstance(e, Milestone)), default=0),
        not_reached=faults - len(done),
        wall_s=wall,
        goodput=sum(r.step_s or 0.0 for r in steps.values()) / wall if wall else 0.0,
        samples=samples(list(steps.values()), passed_over(folder)),
        recoveries=recoveries(events, done, steps_undone(folder), exit_code == 0),
        events=recorder.as_json(),
    )


def recoveries(
    events: Sequence[Told],
    done: Sequence[Injection],
    undone: Sequence[tuple[float, int]],
    finished: bool,
) -> list[Recovery]:
    """One for each fault, out of what came between it and the next."""
    ends = [fault.time for fault in done[1:]] + [float("inf")]
    found = []
    for fault, end in zip(done, ends, strict=True):
        after = [event for event in events if fault.time <= event.time < end]
        lost = sum(steps for time, steps in undone if fault.time <= time < end)
        found.append(_recovery(fault, after, lost, finished))
    return found


def _recovery(fault: Injection, after: Sequence[Told], lost: int, finished: bool) -> Recovery:
    detected = _first(after, "detected")
    regrouped = _first(after, "regrouped", detected or fault.time)
    loaded = _first(after, "resume", regrouped)
    began = loaded if loaded is not None else _first(after, "run", regrouped)
    step = None if regrouped is None else _first(after, "step", began or regrouped)
    noticed = detected if detected is not None else _noticed(fault, after)
    past = any(isinstance(e, StepRecord) and e.step > fault.step for e in after)
    return Recovery(
        fault=fault,
        overcome=past or finished,
        detect_s=_between(fault.time, noticed),
        regroup_s=_between(detected, regrouped),
        load_s=_between(regrouped, began),
        first_step_s=_between(began, step),
        down_s=_between(fault.time, step),
        steps_lost=lost,
    )


def _first(events: Iterable[Told], name: str, after: float | None = 0.0) -> float | None:
    """When the first event of this kind, or phase of the time line, came at or after a time."""
    if after is None:
        return None
    found = (e.time for e in events if name in _names(e))
    return min((time for time in found if time >= after), default=None)


def _noticed(fault: Injection, events: Iterable[Told]) -> float | None:
    signs = NOTICES.get(fault.kind, set())
    return min((e.time for e in events if _names(e) & signs), default=None)


def _names(event: Told) -> set[str]:
    """What an event may be asked for by."""
    return {event.kind, event.phase} if isinstance(event, Milestone) else {event.kind}


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 4)


def steps_undone(folder: Path) -> list[tuple[float, int]]:
    """For each start in a run's log: when it was, and how many logged steps it went back."""
    found: list[tuple[float, int]] = []
    last = 0
    for record in history(folder):
        match record:
            case StepRecord():
                last = max(last, record.step)
            case RunRecord():
                found.append((record.time, max(0, last - record.step)))
                last = record.step
    return found


def samples(steps: Sequence[StepRecord], policy: Sequence[tuple[int, int]]) -> Samples | None:
    """Count over the steps' ranges `samples`: [first, last + 1)."""
    used = [record.samples for record in steps if record.samples is not None]
    if not steps or len(used) < len(steps):
        return None
    lost = repeated = 0
    expected = 0
    passed = sum(last - first for first, last in policy)
    for first, last in sorted([*used, *policy]):
        lost += max(0, first - expected)
        repeated += max(0, min(last, expected) - first)
        expected = max(expected, last)
    return Samples(lost=lost, repeated=repeated, passed_over=passed)


def phase_summary(found: Sequence[Recovery]) -> dict[str, dict[str, float]]:
    """Median, 95th percentile and largest of each phase over the faults that had it, in seconds."""
    summary = {}
    for phase in PHASES:
        values = sorted(v for r in found if (v := getattr(r, phase)) is not None)
        if values:
            rank = min(len(values) - 1, round(0.95 * (len(values) - 1)))
            summary[phase] = {
                "count": len(values),
                "median": statistics.median(values),
                "p95": values[rank],
                "max": values[-1],
            }
    return summary
