"""What a reshape has finished, so that the next one goes on where a killed one stopped."""

import fcntl
import json
import threading
from dataclasses import dataclass
from pathlib import Path

from .... import UserError


@dataclass(frozen=True)
class Done:
    """A tensor whose parts are all written: their SHA-256, and the logical one."""

    logical: str
    parts: list[str]


class Journal:
    """One line for each finished tensor; `done` holds what an earlier run left.

    Locked while it is open: UserError if another process has it.
    """

    def __init__(self, path: Path) -> None:
        self.done: dict[str, Done] = {}
        self._mutex = threading.Lock()
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path}: another reshape writes here; wait for it") from None
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            self._take(line)
        if not text.endswith("\n"):
            # What a kill left half written ends here.
            self._file.write("\n")

    def _take(self, line: str) -> None:
        try:
            name, logical, parts = json.loads(line)
        except (ValueError, TypeError):
            return
        self.done[name] = Done(logical, parts)

    def add(self, name: str, done: Done) -> None:
        """Note a finished tensor, from any thread."""
        with self._mutex:
            self.done[name] = done
            self._file.write(json.dumps([name, done.logical, done.parts]) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Release it."""
        self._file.close()
