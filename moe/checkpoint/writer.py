"""One rank's part of a save, behind the training: write, agree with the others, try again."""

import errno
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ... import UserError
from ..config import CheckpointConfig
from ..state.shard import Shard
from ..state.source import TensorInfo
from . import folder as disk
from .channel import RankChannel
from .commit import CheckpointError, Commit
from .lease import Lease, LeaseLostError, take
from .manifest import DTYPE_NAMES, digest
from .reader import HASH_THREADS
from .retention import Retention
from .snapshot import Snapshot
from .tensorfile import TensorFile

FIXES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of the quota there",
    errno.EROFS: "mount it writable, or set another path",
    errno.EIO: "check the disk",
}
"""Refusals of a disk that may pass, and what a user can do."""


class CopyKeeper(Protocol):
    """Keeps a copy of what is saved; called on the writing thread of every rank."""

    def keep(self, step: int, file: Path) -> None:
        """This rank's file of the save is written and flushed; a new try calls it again."""
        ...

    def commit(self, step: int, manifest: bytes) -> None:
        """The save is complete; the manifest's text."""
        ...


@dataclass
class Job:
    """One save. With an `error` this rank failed already, and still has to tell the others."""

    step: int
    meta: str
    """A JSON object."""
    snapshot: Snapshot
    error: str = ""


class Writer:
    """Writes a rank's jobs under `config.path`; its calls are collective.

    `note` gets (step, text) for an operator.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        rank: int,
        channel: RankChannel,
        keeper: CopyKeeper | None,
        note: Callable[[int, str], None],
    ) -> None:
        """Rank 0 takes the lease on the folder. Raises UserError, on every rank, if another
        process holds it."""
        self._config, self._rank, self._channel = config, rank, channel
        self._path = Path(config.path)
        self._keeper, self._note = keeper, note
        self._lease: Lease | None = None
        self._retention = Retention(config.keep)
        self._session = self._agree_on_session()
        self._led_to = False

    def started(self, step: int) -> None:
        """The run began with the checkpoint of `step` in its own folder (-1: with none of it)."""
        if self._lease:
            self._retention.started(self._path, step)

    def release(self) -> None:
        """Write no more: the folder is free for another process."""
        if self._lease:
            self._lease.release()

    def _agree_on_session(self) -> str:
        verdict = b""
        if self._rank == 0:
            try:
                self._lease = take(self._path, "saves", "checkpoint.path")
                verdict = json.dumps({"session": self._lease.session}).encode()
            except UserError as error:
                verdict = json.dumps({"error": str(error)}).encode()
        answer = json.loads(self._channel.broadcast(verdict))
        if "error" in answer:
            raise UserError(answer["error"])
        return str(answer["session"])

    def write(self, job: Job) -> int:
        """Save; returns the bytes of all ranks.

        Where a disk refused for a reason that may pass, tries again as often as configured.
        Raises CheckpointError or LeaseLostError, the same on every rank.
        """
        tries, pause = self._config.retries, self._config.retry_wait_s
        verdict, manifest = self._attempt(job)
        for attempt in range(1, tries + 1):
            if not verdict.get("again"):
                break
            if self._rank == 0:
                text = f"{verdict['error']}; trying again in {pause:g} s ({attempt} of {tries})"
                self._note(job.step, text)
            time.sleep(pause)
            verdict, manifest = self._attempt(job)
        if "error" in verdict:
            raise (LeaseLostError if verdict["lost"] else CheckpointError)(verdict["error"])
        if manifest:
            self._keep(job.step, lambda keeper: keeper.commit(job.step, manifest))
        return verdict["bytes"]

    def _attempt(self, job: Job) -> tuple[dict[str, Any], bytes]:
        """Write once, and agree: {"bytes"} or {"error", "again"}, and the manifest if there is a
        keeper to show it to."""
        reports = self._channel.gather(self._write(job))
        verdict = self._commit(job, self._lease, reports) if self._lease else b""
        text, _, manifest = self._channel.broadcast(verdict).partition(b"\n")
        return json.loads(text), manifest

    def _write(self, job: Job) -> bytes:
        """Write this rank's file; its report, or its failure, as JSON."""
        if job.error:
            return json.dumps({"error": job.error}).encode()
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            if self._lease:
                self._prepare(job.step, self._lease)
            folder = disk.temporary_folder(self._path, job.step, self._session)
            folder.mkdir(exist_ok=True)
            file = folder / disk.shard_name(self._rank)
            report = write_shards(file, job.snapshot)
        except Exception as error:
            return json.dumps({"error": line(error), "again": may_pass(error)}).encode()
        self._keep(job.step, lambda keeper: keeper.keep(job.step, file))
        return json.dumps({"step": job.step, **report}).encode()

    def _commit(self, job: Job, lease: Lease, reports: list[bytes]) -> bytes:
        """Rank 0: commit, and the verdict for every rank."""
        commit = Commit(
            path=self._path,
            step=job.step,
            session=self._session,
            meta=job.meta,
            lease=lease,
            retention=self._retention,
            note=lambda text: self._note(job.step, text),
        )
        try:
            nbytes, manifest = commit.run(reports)
        except Exception as error:
            lost = isinstance(error, LeaseLostError)
            reason = str(error) if lost or isinstance(error, CheckpointError) else line(error)
            where = f"checkpoint.path {self._path}"
            text = f"step {job.step} was not saved in {where}: {reason}; earlier ones are intact"
            verdict = {"error": text, "again": may_pass(error), "lost": lost}
            return json.dumps(verdict).encode()
        done = json.dumps({"bytes": nbytes}).encode()
        return done + b"\n" + (manifest or b"") if self._keeper else done

    def _keep(self, step: int, call: Callable[[CopyKeeper], None]) -> None:
        if self._keeper is None:
            return
        try:
            call(self._keeper)
        except Exception as error:
            self._note(step, f"not kept in memory: {line(error)}")

    def _prepare(self, step: int, lease: Lease) -> None:
        """Rank 0, before anything is written."""
        if not self._led_to:
            disk.sync_ancestors(self._path)
            self._led_to = True
        try:
            disk.remove_stale(self._path, self._session, lease.check)
        except LeaseLostError:
            return  # The commit says so, to every rank.
        except OSError as error:
            self._note(step, f"a dead session's temporary folder remains: {error}")


def write_shards(file: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Write and flush a rank's tensors; its entries for the manifest, hashed from memory."""
    shards = snapshot.shards
    infos = {key: TensorInfo(s.data.dtype, (s.data.numel(),)) for key, s in shards.items()}
    with TensorFile(file, infos) as out, ThreadPoolExecutor(HASH_THREADS) as pool:

        def put(item: tuple[str, Shard]) -> str:
            out.write(item[0], item[1].data)
            return digest(item[1].data)

        hashes = list(pool.map(put, shards.items()))
    tensors: dict[str, Any] = {
        name: {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "pieces": []}
        for name, (dtype, shape) in snapshot.tensors.items()
    }
    for (key, shard), sha256 in zip(shards.items(), hashes, strict=True):
        piece = {"file": file.name, "key": key, "offset": shard.offset}
        piece |= {"numel": shard.data.numel(), "sha256": sha256}
        tensors[shard.name]["pieces"].append(piece)
    return {"file": file.name, "size": disk.regular_size(file), "tensors": tensors}


def may_pass(error: Exception) -> bool:
    """Whether a new try may succeed: the disk's room or state can change."""
    if isinstance(error, CheckpointError):
        return error.may_pass
    return isinstance(error, OSError) and error.errno in FIXES


def line(error: Exception) -> str:
    """The error on one line; for a disk's refusal also what to do."""
    fix = FIXES.get(error.errno or 0) if isinstance(error, OSError) else None
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{text}: {fix}" if fix else text
