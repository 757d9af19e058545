"""Where a run's records go: JSON lines, TensorBoard, and whoever listens."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

LOG_NAME = "metrics.jsonl"
Listener = Callable[[dict[str, Any]], None]


class RunLog:
    """Appends every record to `metrics.jsonl` and passes it on; only rank 0 makes one.

    A record is a JSON object with `kind` (`run`, `step`, `eval`, `checkpoint`, ...), `time` (UNIX
    seconds) and mostly `step`. A resumed run appends, so a step that was repeated after a fault
    stands twice: the last line counts.
    """

    def __init__(self, folder: Path, listeners: list[Listener]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _open_at_line(folder / LOG_NAME)
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._listeners = listeners
        # Checkpoints report from the thread that writes them.
        self._lock = threading.Lock()

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one record."""
        record = {"time": time.time(), **record}
        with self._lock:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            self._plot(record)
        for listener in self._listeners:
            listener(record)

    def _plot(self, record: dict[str, Any]) -> None:
        step = record.get("step")
        for key, value in _scalars(record):
            if step is not None and key not in ("step", "time"):
                self._board.add_scalar(f"{record['kind']}/{key}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self._board.close()
        self._file.close()


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


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in order, none before it began; of a step logged twice only the last.
    A line that is no record (cut short by a kill) is passed over."""
    try:
        lines = (folder / LOG_NAME).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    records: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(lines):
        record = _record(line)
        if record is None:
            continue
        key = (record["kind"], record["step"]) if "step" in record else number
        records.pop(key, None)
        records[key] = record
    return list(records.values())


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    return record if isinstance(record.get("step", 0), int) else None
