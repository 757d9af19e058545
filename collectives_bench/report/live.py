"""A benchmark as a person watches it: a live table on a terminal, plain lines elsewhere."""

from collections import deque
from contextlib import ExitStack
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..sizes import label
from .grid import Cell, TextTable
from .tables import shape_text, size, speed, time, wrong
from .units import count

KEPT_ROWS = 12
COLLECTIVE = ("op", "group", "size", "algbw", "busbw", "p50", "p95", "max", "wrong")
HARDWARE = ("bench", "kind", "shape", "rank", "rate", "p50", "p95", "max")
WIDTHS = {"op": 28, "group": 14, "size": 9, "bench": 9, "kind": 22, "shape": 32}
"""Characters of the columns of words in plain lines."""


class LiveView:
    """Takes the events of a run (see Collector) and shows them."""

    def __init__(self, console: Console, kind: str) -> None:
        """`kind` is the report's: collectives or hardware."""
        self._console = console
        self._columns = COLLECTIVE if kind == "collectives" else HARDWARE
        self._rows: deque[list[Cell]] = deque(maxlen=KEPT_ROWS)
        self._progress = Progress(
            TextColumn("[bold]{task.fields[what]}", markup=True),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=None, what="starting")
        self._live: Live | None = None
        self._stack = ExitStack()
        self._said_columns = False

    def __enter__(self) -> "LiveView":
        if self._console.is_terminal:
            live = Live(self._view(), console=self._console, refresh_per_second=4)
            self._live = self._stack.enter_context(live)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event; unknown kinds are passed over."""
        show = getattr(self, f"_show_{event['kind']}", None)
        if show:
            show(event)

    def _view(self) -> RenderableType:
        grid = TextTable("", self._columns, list(self._rows))
        return Group(grid.to_rich(), self._progress) if self._rows else Group(self._progress)

    def _say(self, text: str) -> None:
        # A message may hold brackets, which are no markup.
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _show_step(self, event: dict[str, Any]) -> None:
        # Every rank reports; the furthest one is where the run stands.
        done = max(event["step"], int(self._progress.tasks[0].completed))
        what = event["what"].replace("[", r"\[")
        self._progress.update(self._task, completed=done, total=event["total"], what=what)

    def _show_header(self, event: dict[str, Any]) -> None:
        found = event["report"]
        hosts = ", ".join(
            f"{h['name']} ({len(h['ranks'])} x {h['device']})" for h in found["hosts"]
        )
        self._say(f"{count(found['world_size'], 'rank')}, {found['backend']}: {hosts}")

    def _show_measurement(self, event: dict[str, Any]) -> None:
        value = event["value"]
        cells = _hardware(value) if "bench" in value else _collective(value)
        self._rows.append(cells)
        if self._live is not None:
            self._live.update(self._view())
        else:
            self._print_row(cells)

    def _print_row(self, cells: list[Cell]) -> None:
        if not self._said_columns:
            self._said_columns = True
            self._print_words(list(self._columns))
        self._print_words([cell.text for cell in cells])

    def _print_words(self, words: list[str]) -> None:
        padded = [_padded(word, name) for word, name in zip(words, self._columns, strict=True)]
        self._say("  ".join(padded).rstrip())

    def _show_skip(self, event: dict[str, Any]) -> None:
        value = event["value"]
        at = f" at {label(value['bytes'])}" if value["bytes"] else ""
        self._say(f"not measured: {value['what']}{at}: {value['reason']}")

    def _show_waiting(self, event: dict[str, Any]) -> None:
        self._say(event["message"])


def _padded(word: str, column: str) -> str:
    width = WIDTHS.get(column)
    return word.rjust(11) if width is None else word.ljust(width)


def _collective(c: dict[str, Any]) -> list[Cell]:
    words = [c["op"], c["dtype"], *["in place"] * c["in_place"], *filter(None, [c["load"]])]
    group = f"{c['group']} n={len(c['ranks'])}" + (f" x{c['at_once']}" if c["at_once"] > 1 else "")
    return [
        *(Cell(" ".join(words)), Cell(group), size(c["bytes"])),
        *(speed(c[name]) for name in ("algbw", "busbw")),
        *(time(c[name]) for name in ("p50_s", "p95_s", "max_s")),
        wrong(c["wrong"]),
    ]


def _hardware(h: dict[str, Any]) -> list[Cell]:
    return [
        *(Cell(h["bench"]), Cell(f"{h['kind']} {h['dtype']}"), Cell(shape_text(h["shape"]))),
        Cell(str(h["rank"]), h["rank"]),
        speed(h["rate"], h["unit"]),
        *(time(h[name]) for name in ("p50_s", "p95_s", "max_s")),
    ]
