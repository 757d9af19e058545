"""Save checkpoints behind the training steps.

A save appears whole or not at all. The ranks write into a hidden temporary folder; rank 0 checks
that their pieces hold every element exactly once, writes the manifest, renames the folder and
adds the COMMITTED marker last, each step flushed to disk before the next. A step that is already
saved and verifies is kept as it is; an unusable folder in its place is renamed to
`step-*.broken-*`, never deleted. Temporary folders of dead sessions are deleted before the next
write.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..config import CheckpointConfig
from . import folder as disk
from .channel import Channel
from .commit import CheckpointError, Commit
from .manifest import DTYPE_NAMES, digest
from .reader import HASH_THREADS
from .snapshot import Snapshot
from .state import Shard


@dataclass
class _Job:
    step: int
    started: float
    snapshot: Snapshot | None
    """None: this rank failed already, and still has to tell the others."""
    error: str = ""
    stall_ms: float | None = None


class Saver:
    """Writes the shards of all ranks into `config.path`. Making one is collective.

    `log` gets, from the writing thread, {"kind": "checkpoint", step, stall_ms, write_s, bytes} of
    every committed save (bytes over all ranks), and on rank 0 {"kind": "checkpoint_note", step,
    message} for what an operator should know.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        rank: int,
        world_size: int,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._config = config
        self._path = Path(config.path)
        self._rank = rank
        self._log = log or (lambda event: None)
        self._channel = Channel(rank, world_size)
        self._nonce = self._channel.broadcast(secrets.token_hex(8).encode()).decode()
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, step: int, shards: Sequence[Shard], meta: dict[str, Any]) -> float:
        """Start a save; collective. Returns the milliseconds that training stood still.

        Copies the shards, which may change as soon as this returns, and writes them in the
        background (before returning if `asynchronous` is off). `meta` is a JSON object, the same
        on every rank. Raises CheckpointError if the previous save failed; then this one has not
        started. A failure of this save is raised by the next `wait` or `save`, on every rank (here,
        if `asynchronous` is off).
        """
        started = time.perf_counter()
        self.wait()
        job = self._prepare(step, shards, meta, started)
        if self._config.asynchronous:
            job.stall_ms = _since(started) * 1e3
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint")
        self._thread.start()
        if not self._config.asynchronous:
            self.wait()
        return _since(started) * 1e3

    def wait(self) -> None:
        """Wait for the write under way; raises CheckpointError if it failed (once)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait, then release the process group; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._channel.close()

    def _prepare(
        self, step: int, shards: Sequence[Shard], meta: dict[str, Any], started: float
    ) -> _Job:
        """Copy the shards. No failure escapes: the other ranks wait for this one's report."""
        try:
            self._snapshot = Snapshot(shards, meta, self._snapshot)
            return _Job(step, started, self._snapshot)
        except Exception as error:
            self._snapshot = None
            return _Job(step, started, None, error=_line(error))

    def _run(self, job: _Job) -> None:
        began = time.perf_counter()
        try:
            result = self._exchange(job)
        except Exception as error:
            # A lost rank leaves the others in the middle of a collective: free them too.
            self._channel.close()
            self._failure = CheckpointError(f"saving step {job.step} broke off: {_line(error)}")
            return
        if "error" in result:
            self._failure = CheckpointError(result["error"])
        else:
            self._report(job, result["bytes"], _since(began))

    def _exchange(self, job: _Job) -> dict[str, Any]:
        """Write, and agree on the outcome: {"bytes"} or {"error"}, the same on every rank."""
        reports = self._channel.gather(self._write(job))
        verdict = self._commit(job, reports) if self._rank == 0 else b""
        return json.loads(self._channel.broadcast(verdict))

    def _report(self, job: _Job, nbytes: int, write_s: float) -> None:
        stall_ms = _since(job.started) * 1e3 if job.stall_ms is None else job.stall_ms
        event = {"kind": "checkpoint", "step": job.step, "stall_ms": stall_ms}
        try:
            self._log({**event, "write_s": write_s, "bytes": nbytes})
        except Exception as error:
            self._failure = error

    def _write(self, job: _Job) -> bytes:
        """Write this rank's file; its report, or its failure, as JSON."""
        try:
            if job.snapshot is None:
                return json.dumps({"error": job.error}).encode()
            self._path.mkdir(parents=True, exist_ok=True)
            if self._rank == 0:
                self._remove_stale(job.step)
            folder = disk.temporary_folder(self._path, job.step, self._nonce)
            folder.mkdir(exist_ok=True)
            file = folder / disk.shard_name(self._rank)
            report = write_shards(file, job.snapshot)
            return json.dumps({"step": job.step, **report}).encode()
        except Exception as error:
            return json.dumps({"error": _line(error)}).encode()

    def _commit(self, job: _Job, reports: list[bytes]) -> bytes:
        """Rank 0: commit, and the verdict for every rank as JSON."""
        meta = job.snapshot.meta if job.snapshot else "{}"
        keep = self._config.keep
        commit = Commit(self._path, job.step, self._nonce, meta, keep, self._noter(job.step))
        try:
            return json.dumps({"bytes": commit.run(reports)}).encode()
        except Exception as error:
            reason = str(error) if isinstance(error, CheckpointError) else _line(error)
            where = f"checkpoint.path {self._path}"
            text = f"step {job.step} was not saved in {where}: {reason}; earlier ones are intact"
            return json.dumps({"error": text}).encode()

    def _remove_stale(self, step: int) -> None:
        try:
            disk.remove_stale(self._path, self._nonce)
        except OSError as error:
            self._noter(step)(f"a dead session's temporary folder remains: {error}")

    def _noter(self, step: int) -> Callable[[str], None]:
        return lambda text: self._log({"kind": "checkpoint_note", "step": step, "message": text})


def write_shards(file: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Write and flush a rank's tensors; its entries for the manifest, hashed from memory."""
    shards = snapshot.shards
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        hashes = pool.map(digest, [shard.data for shard in shards.values()])
        save_file({key: shard.data for key, shard in shards.items()}, file)
    disk.sync(file)
    tensors: dict[str, Any] = {
        name: {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "pieces": []}
        for name, (dtype, shape) in snapshot.tensors.items()
    }
    for (key, shard), sha256 in zip(shards.items(), hashes, strict=True):
        piece = {"file": file.name, "key": key, "offset": shard.offset}
        piece |= {"numel": shard.data.numel(), "sha256": sha256}
        tensors[shard.name]["pieces"].append(piece)
    return {"file": file.name, "size": disk.regular_size(file), "tensors": tensors}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _since(start: float) -> float:
    return time.perf_counter() - start
