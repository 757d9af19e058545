"""A run as a person watches it: a live bar on a terminal, plain lines there and elsewhere."""

from contextlib import ExitStack
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ...cluster.events import Known, Milestone, Waiting, wire
from .records import (
    CheckpointRecord,
    EvalRecord,
    MessageRecord,
    Record,
    ResumeRecord,
    RunRecord,
    StepRecord,
)


class Display:
    """Takes the records of a run (see RunLog) and shows them."""

    def __init__(self, console: Console, steps: int, log_interval: int) -> None:
        self._console, self._steps, self._interval = console, steps, log_interval
        self._progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("train", total=steps, eta="starting")
        # A row of its own: beside the bar it would not fit 80 columns.
        self._facts = Text()
        self._live = ExitStack()
        self._step_s, self._steps_seen = 0.0, 0

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.enter_context(
                Live(Group(self._progress, self._facts), console=self._console)
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._live.close()

    def __call__(self, told: Record | Known | None) -> None:
        """Show a record of the run, or what its cluster tells; some are for no person."""
        match told:
            case RunRecord():
                self._begin(told)
            case StepRecord():
                self._show_step(told)
            case EvalRecord():
                losses = "  ".join(f"{domain} {loss:.4f}" for domain, loss in told.loss.items())
                self._say(f"step {told.step}  validation loss: {losses}")
            case CheckpointRecord():
                self._say(
                    f"step {told.step}  checkpoint: {told.bytes / 1e6:.1f} MB, training stood "
                    f"still {told.stall_ms:.1f} ms, written in {told.write_s:.2f} s"
                )
            case ResumeRecord():
                self._progress.update(self._task, completed=told.step)
                self._say(f"step {told.step}  resumed from {told.folder}")
            case MessageRecord() | Waiting():
                self._say(told.message)
            case Milestone():
                self._say(_milestone(told))

    def _say(self, text: str) -> None:
        # A message may hold brackets, which are no markup.
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _begin(self, record: RunRecord) -> None:
        self._step_s, self._steps_seen = 0.0, 0
        self._progress.update(self._task, completed=record.step)

    def _average(self, step_s: float) -> float:
        """Of the recent steps; a start's first one, which may compile, counts until the next."""
        self._steps_seen += 1
        return step_s if self._steps_seen <= 2 else 0.9 * self._step_s + 0.1 * step_s

    def _show_step(self, r: StepRecord) -> None:
        if r.loss is None or r.step_s is None:
            return
        self._step_s = self._average(r.step_s)
        eta = f"ETA {timedelta(seconds=round((self._steps - r.step) * self._step_s))}"
        facts = _facts(r)
        self._progress.update(self._task, completed=r.step, eta=eta)
        self._facts.plain = facts
        if r.step == 1 or r.step % self._interval == 0:
            # On a terminal the bar has the time left.
            end = "" if self._console.is_terminal else f"  {eta}"
            self._say(f"step {r.step}/{self._steps}  {facts}{end}")


def _milestone(event: Milestone) -> str:
    facts = "  ".join(
        f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in wire(event).items()
        if key not in ("kind", "time", "phase", "restart")
    )
    return f"cluster  {event.phase}  {facts}"


def _facts(r: StepRecord) -> str:
    mfu = "" if r.mfu is None else f"  mfu {100 * r.mfu:.1f}%"
    return (
        f"loss {r.loss:.4f}  {r.tokens_per_s:,.0f} tok/s{mfu}  balance {r.expert_balance:.2f}  "
        f"grad {r.grad_norm:.3f}  lr {r.lr:.2e}"
    )
