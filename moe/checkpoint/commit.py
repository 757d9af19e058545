"""Rank 0's part of a save: merge what the ranks wrote, check it, and make it the checkpoint."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ... import UserError
from . import folder as disk
from .lease import Lease
from .manifest import Manifest, dump, explain
from .reader import verify
from .retention import Retention


class CheckpointError(RuntimeError):
    """A save failed. Earlier checkpoints are untouched, and every rank raises the same message.

    `may_pass`: every rank that failed met a disk's refusal that can pass.
    """

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


@dataclass(frozen=True)
class Commit:
    """One save to commit: `step` under `path`, written by `session` under `lease`."""

    path: Path
    step: int
    session: str
    meta: str
    lease: Lease
    retention: Retention
    note: Callable[[str], None]

    def run(self, reports: list[bytes]) -> tuple[int, bytes | None]:
        """Commit what the ranks reported, then prune; returns the checkpoint's bytes, and its
        manifest unless the step was there already.

        Raises CheckpointError if a rank failed or the ranks do not hold every element exactly
        once, OSError if the disk refuses, LeaseLostError if another process writes there now. The
        temporary folder is gone in every case.
        """
        temporary = disk.temporary_folder(self.path, self.step, self.session)
        try:
            manifest = merge(self.step, json.loads(self.meta), [json.loads(r) for r in reports])
            _check_visible(temporary, manifest)
            text = self._place(temporary, manifest)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.retention.prune(self.path, self.step, self.lease, self.note)
        return sum(manifest.files.values()), text

    def _place(self, temporary: Path, manifest: Manifest) -> bytes | None:
        """Publish, unless this step is there already: replacing a good checkpoint risks it."""
        final = disk.step_folder(self.path, self.step)
        self.lease.check()
        if final.exists() or final.is_symlink():
            try:
                verify(final)
            except UserError as error:
                self.lease.check()
                self.note(f"unusable, moved to {disk.move_aside(final)}: {error}")
            else:
                self._settle(final)
                self.note(f"{final} is already saved and verifies: kept as it is")
                return None
        text = dump(manifest)
        disk.publish(temporary, final, text, self.lease.check)
        self.retention.saved(final)
        return text

    def _settle(self, final: Path) -> None:
        """Make sure that the disk holds the names of what another session saved."""
        try:
            disk.sync(final)
            disk.sync(final.parent)
        except disk.FlushError:
            # A second flush would succeed without the data: the next try has to write it anew.
            self.lease.check()
            self.note(f"{final} may not be on disk, moved to {disk.move_aside(final)}")
            raise


def merge(step: int, meta: dict[str, Any], reports: list[dict[str, Any]]) -> Manifest:
    """One manifest from the ranks' reports, by rank.

    A report is {"error": text, "again": bool} or {"step", "file", "size", "tensors": name ->
    entry}. Raises CheckpointError if a rank failed, or their pieces do not hold every element
    exactly once.
    """
    failed = [f"rank {rank}: {r['error']}" for rank, r in enumerate(reports) if "error" in r]
    if failed:
        more = f" (and {len(failed) - 1} more ranks)" if len(failed) > 1 else ""
        again = all(r.get("again", False) for r in reports if "error" in r)
        raise CheckpointError(f"{failed[0]}{more}", may_pass=again)
    tensors: dict[str, dict[str, Any]] = {}
    for rank, report in enumerate(reports):
        if report["step"] != step:
            raise CheckpointError(f"rank {rank} saves step {report['step']}, rank 0 step {step}")
        for name, entry in report["tensors"].items():
            _extend(tensors, name, entry, rank)
    files = {report["file"]: report["size"] for report in reports}
    try:
        return Manifest.model_validate(
            {"step": step, "meta": meta, "files": files, "tensors": tensors}
        )
    except ValidationError as error:
        raise CheckpointError(f"the ranks' shards do not fit together: {explain(error)}") from None


def _extend(tensors: dict[str, Any], name: str, entry: dict[str, Any], rank: int) -> None:
    known = tensors.setdefault(name, {**entry, "pieces": []})
    for field in ("dtype", "shape"):
        if known[field] != entry[field]:
            raise CheckpointError(
                f"{name!r} has {field} {entry[field]} on rank {rank}, {known[field]} on another"
            )
    known["pieces"].extend(entry["pieces"])


def _check_visible(temporary: Path, manifest: Manifest) -> None:
    for file, size in manifest.files.items():
        try:
            found = disk.regular_size(temporary / file)
        except (OSError, ValueError):
            found = None
        if found != size:
            raise CheckpointError(
                f"rank 0 does not see {temporary / file} as it was written ({found} bytes for "
                f"{size}): put checkpoint.path on a filesystem that all nodes share"
            )
