"""Save checkpoints behind the training steps.

A save appears whole or not at all. The ranks write into a hidden temporary folder; rank 0 checks
that their pieces hold every element exactly once, writes the manifest, renames the folder and
adds the COMMITTED marker last, each step flushed to disk before the next. A step that is already
saved and verifies is kept as it is; an unusable folder in its place is renamed to
`step-*.broken-*`, never deleted. Temporary folders of older sessions, which are dead or shut out by
the lease, are deleted before the next write.

Training stands still for almost none of it: what only the optimizer's update writes is copied to
the host while the next forward and backward passes run, and the update waits for what is left.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..config import CheckpointConfig
from ..state.shard import Shard
from .channel import RankChannel
from .commit import CheckpointError
from .lease import LeaseLostError
from .snapshot import HostBuffers, Snapshot, Turn
from .writer import CopyKeeper, Job, Writer, line

WRITING_NICE = 10
"""Priority of the writing threads, as nice counts."""


class Updating(Protocol):
    """An engine: what holds the state, and calls `before_update` before it writes steady parts."""

    before_update: Callable[[], None]

    def export_state(self) -> list[Shard]:
        """This rank's shards."""
        ...


class Saver:
    """Writes the shards of all ranks into `config.path`, on which it holds the lease until it is
    closed. Making one is collective; UserError, on every rank, where another process holds it.

    `log` gets, from the writing thread, {"kind": "checkpoint", step, stall_ms, write_s, bytes} of
    every committed save (bytes over all ranks), and {"kind": "checkpoint_note", step, message} for
    what an operator should know (from rank 0, where it is not of one rank). `keeper`, on every
    rank or on none, gets what is saved.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        rank: int,
        world_size: int,
        log: Callable[[dict[str, Any]], None] | None = None,
        keeper: CopyKeeper | None = None,
    ) -> None:
        self._asynchronous = config.asynchronous
        self._log = log or (lambda event: None)
        self._channel = RankChannel(rank, world_size)
        self._writer = Writer(config, rank, self._channel, keeper, self._note)
        self._buffers = HostBuffers()
        self._behind = False
        self._turn: Turn | None = None
        self._started = self._stall_ms = 0.0
        self._returned = threading.Event()
        self._preparing: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def attach(self, engine: Updating) -> None:
        """Let the engine's updates wait for `settle`, so that saves copy steady shards behind
        training; allocates the host memory for them in the background."""
        if not self._asynchronous:
            return
        engine.before_update = self.settle
        self._behind = True
        shards = engine.export_state()
        self._preparing = threading.Thread(target=self._reserve, args=(shards,), name="buffers")
        self._preparing.start()

    def started(self, step: int) -> None:
        """The run began with its own checkpoint of `step` (-1: with none): newer ones that lie
        there were refused, and retention counts none of them."""
        self._writer.started(step)

    def save(self, step: int, shards: Sequence[Shard], meta: dict[str, Any]) -> float:
        """Start a save; collective. Returns the milliseconds that training stood still.

        The shards may change as soon as this returns (steady ones of an attached engine: after
        `settle`); they are written in the background (before returning if `asynchronous` is off).
        `meta` is a JSON object, the same on every rank. Raises CheckpointError if the previous
        save failed, LeaseLostError if another process has the folder; then this one has not
        started. A failure of this save is raised by the next `wait` or `save`, on every rank (here,
        if `asynchronous` is off).
        """
        self._started = time.perf_counter()
        self.wait()
        later = [shard for shard in shards if shard.steady] if self._behind else []
        now = [shard for shard in shards if not shard.steady] if self._behind else shards
        job = self._start(step, now, meta)
        device = next((shard.data.device for shard in shards if shard.data.is_cuda), None)
        turn = self._turn = Turn(device)
        self._thread = threading.Thread(target=self._run, args=(job, later, turn))
        self._returned.clear()
        self._thread.start()
        if not self._asynchronous:
            self.wait()
        self._stall_ms = _since(self._started) * 1e3
        self._returned.set()
        return self._stall_ms

    def settle(self) -> None:
        """Wait for the copies that a save still makes; then everything may be written."""
        if self._turn is None:
            return
        started = time.perf_counter()
        self._turn.settle()
        self._turn = None
        self._stall_ms += _since(started) * 1e3

    def wait(self) -> None:
        """Wait for the write under way; raises what it failed with (once)."""
        for thread in (self._preparing, self._thread):
            if thread is not None:
                thread.join()
        self._preparing = self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait, then release the folder and the process group; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._writer.release()
            self._channel.close()

    def _reserve(self, shards: list[Shard]) -> None:
        try:
            self._buffers.reserve(shards)
        except Exception as error:
            self._note(0, f"no host memory for checkpoints yet: {line(error)}")

    def _start(self, step: int, shards: Sequence[Shard], meta: dict[str, Any]) -> Job:
        """Copy the shards. No failure escapes: the other ranks wait for this one's report."""
        job = Job(step, "{}", Snapshot(self._buffers))
        try:
            job.meta = json.dumps(meta, allow_nan=False)
            job.snapshot.add(shards)
        except Exception as error:
            job.error = line(error)
        return job

    def _run(self, job: Job, later: list[Shard], turn: Turn) -> None:
        began = time.perf_counter()
        try:
            with turn.copying():
                if not job.error:
                    job.snapshot.add(later)
        except Exception as error:
            job.error = line(error)
        _give_way()
        try:
            nbytes = self._writer.write(job)
        except (CheckpointError, LeaseLostError) as error:
            self._failure = error
        except Exception as error:
            # A lost rank leaves the others in the middle of a collective: free them too.
            self._channel.close()
            self._failure = CheckpointError(f"saving step {job.step} broke off: {line(error)}")
        else:
            self._report(job.step, nbytes, _since(began))

    def _report(self, step: int, nbytes: int, write_s: float) -> None:
        if self._asynchronous:
            self._returned.wait()
        else:
            self._stall_ms = _since(self._started) * 1e3
        event = {"kind": "checkpoint", "step": step, "stall_ms": self._stall_ms}
        try:
            self._log({**event, "write_s": write_s, "bytes": nbytes})
        except Exception as error:
            self._failure = error

    def _note(self, step: int, text: str) -> None:
        self._log({"kind": "checkpoint_note", "step": step, "message": text})


def _give_way() -> None:
    """Lower this thread's priority, and of the threads it starts: hashing would take the cores of
    training that runs on a CPU."""
    thread = threading.get_native_id()
    present = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, max(present, WRITING_NICE))


def _since(start: float) -> float:
    return time.perf_counter() - start
