"""Make the planned checkpoint: many readers, one pass over each tensor, atomic and resumable.

Everything is written under a hidden folder beside the new checkpoint. A journal there names the
finished tensors: after a kill the same reshape goes on, with those whose parts still hash to what
it says. The last rename is that of every save.
"""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from .... import UserError
from .. import folder as disk
from ..manifest import Manifest, dump
from .journal import Done, Journal
from .output import OutputFolder, Progress
from .plan import PlanPart, ReshapePlan, dtype_name, tensor_bytes
from .tensorpass import TensorPass

JOURNAL = "journal.jsonl"


def reshape(plan: ReshapePlan, out: Path, progress: Progress | None = None) -> Path:
    """Write the plan's checkpoint as `out`/step-N, and return that folder.

    Raises UserError if it is there already, for a damaged source, and where the disk refuses; what
    was done by then stays in a hidden folder, and the same reshape goes on from it.
    """
    final = disk.step_folder(out, plan.source.step)
    hidden = out / f".reshape-{final.name}-{fingerprint(plan)}"
    if final.exists() or final.is_symlink():
        raise UserError(f"{final}: is there already: give another folder")
    with _disk_errors(out):
        (hidden / "data").mkdir(parents=True, exist_ok=True)
        journal = Journal(hidden / JOURNAL)
        try:
            manifest = _Work(plan, hidden / "data", journal, progress).run()
            disk.publish(hidden / "data", final, dump(manifest))
        except OSError as error:
            # After a failed flush what is read back need not be on the disk: nothing can be kept.
            if not journal.done or isinstance(error, disk.FlushError):
                shutil.rmtree(hidden, ignore_errors=True)
            raise
        finally:
            journal.close()
        shutil.rmtree(hidden)
    return final


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{out}: {reason}: make room there or give another folder; the same command goes on"
        ) from None


def fingerprint(plan: ReshapePlan) -> str:
    """16 hex digits that differ for another source or another layout."""
    sha = hashlib.sha256()
    for path in sorted(plan.source.folder.rglob("*")):
        if path.is_file():
            status = path.stat()
            sha.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    for name, parts in sorted(plan.parts.items()):
        sha.update(repr((name, [astuple(part) for part in parts])).encode())
    return sha.hexdigest()[:16]


class _Work:
    """One run of a plan into `folder`."""

    def __init__(
        self, plan: ReshapePlan, folder: Path, journal: Journal, progress: Progress | None
    ) -> None:
        self._plan, self._journal = plan, journal
        self._output = OutputFolder(folder, plan)
        self._progress, self._done = progress, 0
        self._mutex, self._stop = threading.Lock(), threading.Event()
        self._local = threading.local()

    def run(self) -> Manifest:
        """Write and flush everything; the manifest of it."""
        try:
            self._copy_all()
        except BaseException:
            self._output.abandon()
            raise
        sizes = self._output.sizes
        self._output.finish()
        tensors = {name: self._entry(name, parts) for name, parts in self._plan.parts.items()}
        source = self._plan.source
        return Manifest.model_validate(
            {"step": source.step, "meta": source.meta, "files": sizes, "tensors": tensors}
        )

    def _copy_all(self) -> None:
        """Largest first, so that no reader is left alone with a large one at the end."""
        tensors = self._plan.source.tensors
        names = sorted(self._plan.parts, key=lambda name: tensor_bytes(tensors[name]), reverse=True)
        with ThreadPoolExecutor(self._plan.readers) as pool:
            try:
                futures = [pool.submit(self._copy, name) for name in names]
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            finally:
                self._stop.set()

    def _copy(self, name: str) -> None:
        if self._stop.is_set():
            return
        parts = self._plan.parts[name]
        if not self._kept(name, parts):
            by_slab = {part.slab: part for part in parts}
            one = TensorPass(self._plan.source, name, list(by_slab))
            one.run(self._buffer(), lambda slab, *data: self._output.write(by_slab[slab], *data))
            self._journal.add(name, Done(one.logical_sha256, [one.sha256(p.slab) for p in parts]))
        self._advance(tensor_bytes(self._plan.source.tensors[name]))

    def _kept(self, name: str, parts: list[PlanPart]) -> bool:
        """Whether an earlier run wrote these parts, and they are still what it wrote."""
        done = self._journal.done.get(name)
        if done is None:
            return False
        return [self._output.sha256(part, self._buffer()) for part in parts] == done.parts

    def _buffer(self) -> memoryview:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(bytearray(self._plan.chunk))
        return self._local.buffer

    def _advance(self, nbytes: int) -> None:
        with self._mutex:
            self._done += nbytes
            if self._progress:
                self._progress(self._done, self._plan.nbytes)

    def _entry(self, name: str, parts: list[PlanPart]) -> dict[str, Any]:
        info, done = self._plan.source.tensors[name], self._journal.done[name]
        pieces = [_piece(part, sha256) for part, sha256 in zip(parts, done.parts, strict=True)]
        kind = {"dtype": dtype_name(info), "shape": list(info.shape)}
        return {**kind, "pieces": pieces, "sha256": done.logical}


def _piece(part: PlanPart, sha256: str) -> dict[str, Any]:
    slab = part.slab
    where = {"file": disk.shard_name(part.rank), "key": part.key, "offset": slab.offset}
    shape = {"numel": slab.numel, "rows": slab.rows, "stride": slab.stride}
    return {**where, **shape, "sha256": sha256}
