"""What a seat does on its node: holds one worker process at a time, whoever calls it."""

import asyncio
import os
import socket
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from .backend import Poll, Start
from .environment import worker_env
from .process import WorkerProcess
from .spec import Event


class Holder:
    """Holds one worker at a time, for one attempt after the other. All methods run on one event
    loop, in a process of its own: it ends that process when its lease is over."""

    def __init__(self, address: str) -> None:
        """Nothing is held yet; `address` is this node's, as its peers know it."""
        self.address = address
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._more = asyncio.Event()
        self._process: WorkerProcess | None = None
        self._attempt = -1
        self.counted = self._answered = time.monotonic()
        """When the lease began, and the last call for it: see `lease`."""
        self._lease: asyncio.Task[None] | None = None

    async def free_port(self) -> int:
        """A TCP port that is free on this node now."""
        with socket.create_server((self.address, 0)) as server:
            port: int = server.getsockname()[1]
        return port

    async def hold(self, lease_s: float) -> None:
        """From now on end the worker and this process when nobody calls `renew` for `lease_s`: a
        node that is cut off must not go on writing into a run that has moved on."""
        self.counted = self._answered = time.monotonic()
        self._lease = asyncio.create_task(self._end_when_forgotten(lease_s))

    async def renew(self) -> None:
        """Say that the supervisor still counts on this seat, and heard its last answer."""
        self.counted, self._answered = self._answered, time.monotonic()

    async def start(self, start: Start) -> int:
        """Start the worker and return its process id. Raises OSError (cwd missing, no process)
        and UserError (a reference of `cluster.env` to nothing)."""
        loop = asyncio.get_running_loop()
        self._events.clear()
        self._dropped, self._attempt = 0, start.attempt

        def on_event(event: Event) -> None:
            with suppress(RuntimeError):  # The loop is closed: this process is going away.
                loop.call_soon_threadsafe(self._push, start.attempt, event)

        self._process = WorkerProcess(
            start.command,
            worker_env(dict(os.environ), start, self.address),
            cwd=start.cwd,
            log_path=None if start.log_path is None else Path(start.log_path),
            on_event=on_event,
        )
        return self._process.pid

    async def next_events(self, attempt: int, seen: int, timeout_s: float) -> Poll:
        """Events of `attempt` as soon as there are more than the `seen` first, or an empty answer
        after `timeout_s`. Those seen are forgotten; an answer that was lost can be had again."""
        while attempt == self._attempt and self._dropped < seen and self._events:
            self._events.popleft()
            self._dropped += 1
        if not self._events:
            self._more.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._more.wait(), timeout_s)
        if attempt != self._attempt or self._process is None:
            return Poll((), 0, None, None)
        silent_s, stage = self._process.silent_s, self._process.stage
        return Poll(tuple(self._events), self._dropped, silent_s, stage)

    async def signal(self, number: int) -> None:
        """Send the worker a signal: on SIGTERM it may save before it goes."""
        if self._process is not None:
            self._process.signal(number)

    async def kill(self) -> bool:
        """SIGKILL the worker's session; True when it is gone."""
        if self._process is None:
            return True
        return await asyncio.to_thread(self._process.kill)

    async def _end_when_forgotten(self, lease_s: float) -> None:
        while time.monotonic() - self.counted < lease_s:
            await asyncio.sleep(lease_s / 20)
        await self.kill()
        os._exit(1)  # Gives the seat's room back, which nobody else could.

    def _push(self, attempt: int, event: Event) -> None:
        if attempt == self._attempt:
            self._events.append(event)
            self._more.set()
