"""Where a run's records go: JSON lines, TensorBoard, and whoever listens."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ...moe.checkpoint.lease import take
from .board import Board
from .patient import PatientFile
from .records import NoteRecord, Record, from_json, to_json

LOG_NAME = "metrics.jsonl"
Kind = TypeVar("Kind", bound=Record)
Listener = Callable[[Record], None]


class RunLog:
    """Appends every record to `metrics.jsonl` and passes it on; only rank 0 makes one.

    A resumed run appends, so a step that was repeated after a fault stands twice: the last line
    counts. Each line has the number of the `lease` that it was written under. A disk that refuses
    never ends training.
    """

    def __init__(self, folder: Path, listeners: list[Listener]) -> None:
        """Raises UserError where another process writes the records of this folder."""
        self._lease = take(folder, "records", "output")
        self._file = PatientFile(folder / LOG_NAME)
        self._board = Board(folder / "tensorboard")
        self._listeners = listeners
        # Checkpoints report from the thread that writes them.
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        """Write one record. Raises LeaseLostError once another process writes there."""
        with self._lock:
            self.check()
            line = {**to_json(record), "lease": self._lease.number}
            said = [self._file.write(json.dumps(line)), self._board.plot(record)]
        for listener in self._listeners:
            listener(record)
        self._tell(said)

    def _tell(self, said: list[str]) -> None:
        """To the listeners alone: what has just been refused would be again."""
        for text in filter(None, said):
            for listener in self._listeners:
                listener(NoteRecord(message=text))

    def check(self) -> None:
        """Call before anything else is written into the folder. Raises LeaseLostError."""
        self._lease.check()

    def close(self) -> None:
        """Flush and close; the folder is free for another process."""
        self._board.close()
        self._tell([self._file.close()])
        self._lease.release()


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
