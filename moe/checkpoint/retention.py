"""Which checkpoints go when a newer one is saved."""

from collections.abc import Callable
from pathlib import Path

from ... import UserError
from . import folder as disk
from .lease import Lease
from .reader import is_whole, verify

LOOKS = 8
"""Manifests read at one save; a folder beyond them counts by its marker until it has its turn."""


class Retention:
    """Keeps the newest `keep` checkpoints of a run; remembers what it knows of each.

    What was refused as damaged counts for nothing, and nothing goes before one that stays has been
    read back and verified.
    """

    def __init__(self, keep: int) -> None:
        """Nothing is known yet."""
        self._keep = keep
        self._complete: dict[str, bool] = {}
        self._marked: dict[str, bool] = {}
        self._refused: set[str] = set()
        self._verified: set[str] = set()

    def started(self, path: Path, step: int) -> None:
        """The run began with the checkpoint of `step`: what is newer was refused."""
        names = {f.name for f in disk.step_folders(path) if (disk.step_of(f) or 0) > step}
        self._refused |= names

    def saved(self, folder: Path) -> None:
        """A checkpoint was written there just now, whatever was known of the one before."""
        self._refused.discard(folder.name)
        self._verified.discard(folder.name)
        self._complete[folder.name] = True

    def prune(self, path: Path, step: int, lease: Lease, note: Callable[[str], None]) -> None:
        """Delete what is older than the newest `keep` up to `step`; later ones are of another run,
        left alone. Raises LeaseLostError."""
        up_to = [f for f in disk.step_folders(path) if (disk.step_of(f) or 0) <= step]
        kept = self._newest(up_to)
        while len(kept) == self._keep and not self._is_safe(kept, note):
            kept = self._newest(up_to)
        if len(kept) < self._keep:
            return
        for folder in up_to[: up_to.index(kept[-1])]:
            if self._counts(folder, look=True):
                try:
                    disk.delete(folder, lease.session, lease.check)
                except OSError as error:
                    note(f"{folder} could not be pruned: {error}")

    def _newest(self, folders: list[Path]) -> list[Path]:
        """The newest `keep` that count, newest first; without a look where there are no more."""
        if len(folders) <= self._keep:
            return []
        kept: list[Path] = []
        looks = LOOKS
        for folder in reversed(folders):
            looks -= folder.name not in self._complete
            if self._counts(folder, look=looks >= 0):
                kept.append(folder)
            if len(kept) == self._keep:
                break
        return kept

    def _counts(self, folder: Path, look: bool) -> bool:
        if folder.name in self._refused:
            return False
        if look and folder.name not in self._complete:
            self._complete[folder.name] = is_whole(folder)
        if folder.name in self._complete:
            return self._complete[folder.name]
        if folder.name not in self._marked:
            self._marked[folder.name] = (folder / disk.MARKER).exists()
        return self._marked[folder.name]

    def _is_safe(self, kept: list[Path], note: Callable[[str], None]) -> bool:
        """Whether one of them has been verified; if none has, the newest is now."""
        if any(folder.name in self._verified for folder in kept):
            return True
        try:
            verify(kept[0])
        except UserError as error:
            self._refused.add(kept[0].name)
            note(f"it does not count among checkpoint.keep: {error}")
            return False
        self._verified.add(kept[0].name)
        return True
