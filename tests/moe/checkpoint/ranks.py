"""Runs scenarios in forked ranks: imports torch once, then forks on request.

Reads JSON lines {"scenario", "path", "world", "kill_after", ...} and answers each with a JSON list
of the ranks' outcomes: what the scenario returned, or "signal 9".
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moelstrom.moe.checkpoint.commit import CheckpointError
from moelstrom.moe.checkpoint.reader import choose
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

NUMEL = 300_000
KILL_AT = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


class Rank:
    """One forked rank of a request."""

    def __init__(self, request: dict[str, Any], rank: int) -> None:
        self.request, self.rank, self.world = request, rank, request["world"]
        if self.world > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{request['store']}", rank=rank, world_size=self.world
            )
        self.config = CheckpointConfig(
            path=request["path"],
            keep=2,
            asynchronous=request.get("asynchronous", True),
            retries=request.get("retries", 0),
            retry_wait_s=0.2,
        )
        self.notes: list[str] = []
        self.kept: list[str] = []
        keeper = self if request.get("keeper") else None
        self.saver = Saver(self.config, rank, self.world, self.log, keeper)

    def shards(self, step: int, numel: int = NUMEL) -> list[Shard]:
        """This rank's share of tensors whose every element is the step (times `scale`)."""
        bounds = [numel * r // self.world for r in range(self.world + 1)]
        first, last = bounds[self.rank], bounds[self.rank + 1]
        data = torch.full((last - first,), step * self.request.get("scale", 1.0))
        return [Shard(f"model/w{i}", (numel,), first, data) for i in range(3)]

    def save(self, step: int, numel: int = NUMEL) -> str:
        """The save's error, or an empty text."""
        try:
            self.saver.save(step, self.shards(step, numel), {"step": step})
            self.saver.wait()
        except CheckpointError as error:
            return str(error)
        return ""

    def log(self, event: dict[str, Any]) -> None:
        """Note what the saver says; room comes back on the disk when it complains."""
        if event["kind"] == "checkpoint_note":
            self.notes.append(event["message"])
            Path(self.request["path"], "filler").unlink(missing_ok=True)

    def keep(self, step: int, file: Path) -> None:
        """As a keeper, see this rank's file."""
        self.kept.append(f"keep {step} {file.name} {file.stat().st_size > 0}")

    def commit(self, step: int, manifest: bytes) -> None:
        """As a keeper, see the manifest."""
        self.kept.append(f"commit {step} {hashlib.sha256(manifest).hexdigest()}")

    # Scenarios

    def one(self) -> Any:
        """A single save, then a clean close."""
        outcome = self.save(self.request.get("step", 1))
        self.saver.close()
        return outcome

    def endless(self) -> Any:
        """Save until killed; acknowledge each committed step in the file `acks`."""
        found = choose(self.config.path, lambda text: None)
        step = int(found.name.removeprefix("step-")) if found else 0
        while True:
            step += 1
            self.saver.save(step, self.shards(step), {"step": step})
            if step % 2:
                self.saver.wait()
                with Path(self.request["acks"]).open("a") as file:
                    file.write(f"{step}\n")

    def die_at(self) -> Any:
        """Save once, with SIGKILL at the n-th filesystem call."""
        left = self.request["n"]

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event in KILL_AT and str(self.config.path) in str(args[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        return self.one()

    def one_fails(self) -> Any:
        """Rank 1 may not write large files in the second save of three."""
        first = self.save(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
        second = self.save(2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return [first, second, self.save(3)]

    def disk_full(self) -> Any:
        """A second save that the disk does not hold, then one that fits."""
        return [self.save(1, 1000), self.save(2, 10_000_000), self.save(3, 1000)]

    def room_returns(self) -> Any:
        """A save, then one that the disk takes only after the first complaint."""
        first = self.save(1, 1000)
        if self.rank == 0:
            Path(self.request["path"], "filler").write_bytes(b"x" * (3 << 20))
        if self.world > 1:
            dist.barrier()
        return [first, self.save(2, 100_000), self.notes, self.kept]

    def lost(self) -> Any:
        """The last rank dies between two saves."""
        first = self.save(1)
        if self.rank == self.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return [first, self.save(2), self.save(3)]

    def bad_shards(self) -> Any:
        """Rank 1 gives meta that is not JSON's, a strided shard, and too few elements."""
        whole, bad = self.shards(1), self.rank == 1
        strided = [Shard("model/w0", (NUMEL,), 0, torch.ones(4)[::2])]
        saves: list[tuple[list[Shard], dict[str, Any]]] = [
            (whole, {"loss": float("nan")} if bad else {}),
            (strided if bad else whole, {}),
            (whole[:2] if bad else whole, {}),
            (whole, {}),
        ]
        return [self._attempt(step, *save) for step, save in enumerate(saves)]

    def _attempt(self, step: int, shards: list[Shard], meta: dict[str, Any]) -> str:
        try:
            self.saver.save(step, shards, meta)
            self.saver.wait()
        except CheckpointError as error:
            return str(error)
        return ""


def fork(request: dict[str, Any], rank: int) -> tuple[int, int]:
    """Start a rank; its pid and the pipe that its outcome comes through."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        outcome = getattr(Rank(request, rank), request["scenario"])()
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    os.write(writing, json.dumps(outcome).encode())
    os._exit(0)


def reap(pid: int, reading: int) -> Any:
    """Wait for a rank and return its outcome."""
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else json.loads(text)


def main() -> None:
    """Serve requests until stdin closes."""
    for line in sys.stdin:
        request = json.loads(line)
        forked = [fork(request, rank) for rank in range(request["world"])]
        if "kill_after" in request:
            time.sleep(request["kill_after"])
            for pid, _ in forked:
                os.kill(pid, signal.SIGKILL)
                time.sleep(request.get("kill_gap", 0.0))
        print(json.dumps([reap(*child) for child in forked]), flush=True)


if __name__ == "__main__":
    main()
