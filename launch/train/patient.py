"""A file of lines whose disk may refuse them for a while."""

import os
from collections import deque
from io import FileIO
from pathlib import Path

MOST_WAITING = 10_000
"""Lines that are kept while they cannot be written; of more the oldest are lost."""


class PatientFile:
    """Appends lines; what cannot be written waits in memory, and is tried again with every line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self.problem = ""
        """Why lines wait; empty if none do."""

    def write(self, line: str) -> str:
        """Append a line (without its end); what to tell of a change: lines begin to wait, or are
        written again. Raises nothing for a disk that refuses."""
        self._waiting.append(line.encode() + b"\n")
        if len(self._waiting) > MOST_WAITING:
            # The first may be cut already: its rest ends it.
            del self._waiting[1]
            self._lost += 1
        return self._try()

    def close(self) -> str:
        """Try once more, and close; what was lost, in words."""
        said = self._try()
        if self._file:
            self._file.close()
        left = len(self._waiting)
        return f"{self._path}: {left} records are lost ({self.problem})" if left else said

    def _try(self) -> str:
        before = self.problem
        try:
            self._flush()
        except OSError as error:
            self.problem = error.strerror or str(error)
            if before:
                return ""
            return (
                f"{self._path}: {self.problem}; training goes on, up to {MOST_WAITING:,} records "
                "wait in memory"
            )
        self.problem = ""
        lost, self._lost = self._lost, 0
        more = f", {lost} records are lost" if lost else ""
        return f"{self._path}: is written again{more}" if before else ""

    def _flush(self) -> None:
        if self._file is None:
            self._file = _open_at_line(self._path)
        while self._waiting:
            # A full disk may take the first part of a line.
            written = self._file.write(self._waiting[0])
            rest = self._waiting[0][written:]
            if rest:
                self._waiting[0] = rest
            else:
                self._waiting.popleft()


def _open_at_line(path: Path) -> FileIO:
    """Open for appending; a line that a kill cut short ends first, or it would spoil the next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
    return path.open("ab", buffering=0)
