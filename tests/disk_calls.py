"""What a save does to the disk, in order: calls of `os` on one folder's files, by relative name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WRITING = os.O_WRONLY | os.O_RDWR


class Recorded:
    """Records `calls` like "write step-1/f", but for those on leases and of failed calls."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root, self._patch = str(root), patch
        self.calls: list[str] = []
        self._open: dict[int, str] = {}
        self._handles()
        for name in ("mkdir", "rmdir", "unlink", "remove"):
            self._path_call(name)
        self._moves()

    def _wrap(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        call = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            note(result, *args)
            return result

        self._patch.setattr(owner, name, wrapped)

    def _note(self, what: str, *paths: Any) -> None:
        names = [os.fspath(path) for path in paths]
        if all(name.startswith(self._root) for name in names) and ".lease" not in names[0]:
            short = [os.path.relpath(name, self._root) for name in names]
            self.calls.append(" ".join([what, *short]))

    def _handles(self) -> None:
        def opened(handle: int, path: Any, flags: int = 0, *rest: Any) -> None:
            self._open[handle] = os.fspath(path)
            if flags & WRITING:
                self._note("open", path)

        self._wrap(os, "open", opened)
        kinds = {
            "write": "write",
            "pwrite": "write",
            "fsync": "fsync",
            "posix_fallocate": "reserve",
        }
        for name, what in kinds.items():
            self._handle_call(name, what)

    def _handle_call(self, name: str, what: str) -> None:
        def note(_: Any, handle: int, *rest: Any) -> None:
            if handle in self._open:
                self._note(what, self._open[handle])

        self._wrap(os, name, note)

    def _path_call(self, name: str) -> None:
        self._wrap(os, name, lambda _, path, *rest: self._note(name, path))

    def _moves(self) -> None:
        self._wrap(os, "rename", lambda _, source, target: self._note("rename", source, target))
        remove = shutil.rmtree

        def rmtree(path: Any, *args: Any, **options: Any) -> None:
            # Its own calls are of no interest, and name files without their folder.
            there, before = os.path.lexists(path), len(self.calls)
            remove(path, *args, **options)
            del self.calls[before:]
            if there:
                self._note("rmtree", path)

        self._patch.setattr(shutil, "rmtree", rmtree)
