"""Where a run's records go: JSON lines, TensorBoard, and whoever listens."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ...moe.checkpoint.lease import take
from .records import Record, from_json, to_json

LOG_NAME = "metrics.jsonl"
Kind = TypeVar("Kind", bound=Record)
Listener = Callable[[Record], None]


class RunLog:
    """Appends every record to `metrics.jsonl` and passes it on; only rank 0 makes one.

    A resumed run appends, so a step that was repeated after a fault stands twice: the last line
    counts. Each line has the number of the `lease` that it was written under.
    """

    def __init__(self, folder: Path, listeners: list[Listener]) -> None:
        """Raises UserError where another process writes the records of this folder."""
        # Imported here: it brings torch, which no reader needs.
        from torch.utils.tensorboard import SummaryWriter

        self._lease = take(folder, "records", "output")
        self._file = _open_at_line(folder / LOG_NAME)
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._listeners = listeners
        # Checkpoints report from the thread that writes them.
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        """Write one record. Raises LeaseLostError once another process writes there."""
        with self._lock:
            self.check()
            line = {**to_json(record), "lease": self._lease.number}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            self._plot(record)
        for listener in self._listeners:
            listener(record)

    def _plot(self, record: Record) -> None:
        for key, value in _scalars(to_json(record)):
            if record.step is not None and key not in ("step", "time"):
                self._board.add_scalar(f"{record.kind}/{key}", value, record.step)

    def check(self) -> None:
        """Call before anything else is written into the folder. Raises LeaseLostError."""
        self._lease.check()

    def close(self) -> None:
        """Flush and close; the folder is free for another process."""
        self._board.close()
        self._file.close()
        self._lease.release()


def _open_at_line(path: Path) -> TextIO:
    """Open for appending; a line that a kill cut short ends first, or it would spoil the next."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
    return path.open("a", encoding="utf-8")


def _scalars(record: dict[str, Any]) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            flat += [(f"{key}/{name}", number) for name, number in _scalars(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat.append((key, value))
    return flat


def read(folder: Path) -> list[Record]:
    """The records of a run, in order, none before it began; of a step logged twice only the last.
    A line that is no record (cut short by a kill) is passed over."""
    records: dict[Any, Record] = {}
    for number, record in enumerate(history(folder)):
        key = number if record.step is None else (record.kind, record.step)
        records.pop(key, None)
        records[key] = record
    return list(records.values())


def select(folder: Path, kind: type[Kind]) -> list[Kind]:
    """Those of one kind, as `read` gives them."""
    return [record for record in read(folder) if isinstance(record, kind)]


def history(folder: Path) -> list[Record]:
    """Every record as it was written, also of steps that were done again."""
    try:
        text = (folder / LOG_NAME).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [record for line in text.split("\n") if (record := _record(line))]


def _record(line: str) -> Record | None:
    try:
        return from_json(json.loads(line))
    except (ValueError, RecursionError):
        return None
