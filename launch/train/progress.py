"""A run as a person watches it: a live bar on a terminal, plain lines there and elsewhere."""

from contextlib import ExitStack
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ...cluster.spec import Event
from .records import (
    CheckpointRecord,
    EvalRecord,
    MessageRecord,
    Record,
    ResumeRecord,
    RunRecord,
    StepRecord,
    from_json,
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

    def __call__(self, record: Record) -> None:
        """Show one record."""
        match record:
            case RunRecord():
                self._begin(record)
            case StepRecord():
                self._show_step(record)
            case EvalRecord():
                losses = "  ".join(f"{domain} {loss:.4f}" for domain, loss in record.loss.items())
                self._say(f"step {record.step}  validation loss: {losses}")
            case CheckpointRecord():
                self._say(
                    f"step {record.step}  checkpoint: {record.bytes / 1e6:.1f} MB, training stood "
                    f"still {record.stall_ms:.1f} ms, written in {record.write_s:.2f} s"
                )
            case ResumeRecord():
                self._say(f"step {record.step}  resumed from {record.folder}")
            case MessageRecord():
                self._say(record.message)

    def on_event(self, event: Event) -> None:
        """Show an event of a supervisor: a worker's record, or what the cluster tells."""
        record = from_json(event)
        if record:
            self(record)
        elif event["kind"] == "waiting":
            self._say(event["message"])
        elif event["kind"] == "timeline":
            self._show_timeline(event)

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

    def _show_timeline(self, r: Event) -> None:
        facts = "  ".join(
            f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in r.items()
            if key not in ("kind", "time", "phase", "restart") and value is not None
        )
        self._say(f"cluster  {r['phase']}  {facts}")


def _facts(r: StepRecord) -> str:
    mfu = "" if r.mfu is None else f"  mfu {100 * r.mfu:.1f}%"
    return (
        f"loss {r.loss:.4f}  {r.tokens_per_s:,.0f} tok/s{mfu}  balance {r.expert_balance:.2f}  "
        f"grad {r.grad_norm:.3f}  lr {r.lr:.2e}"
    )
