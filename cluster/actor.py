"""The Ray actor that holds one worker process on its node."""

import asyncio
import os
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from .process import WorkerProcess
from .spec import Event
from .watch import Poll

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Site:
    """Where an actor landed: Ray's node id, address, and the GPU indices that Ray gave it."""

    node: str
    address: str
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """All that an actor needs to start its worker."""

    command: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    log_path: str | None
    cpus: int
    hide_gpus: bool
    attempt: int
    """Tells this worker's events from those of the ones before it."""


class WorkerActor:
    """Runs in a Ray worker process; all methods run on its event loop. Holds one worker at a time,
    for one attempt after the other."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._more = asyncio.Event()
        self._process: WorkerProcess | None = None
        self._attempt = -1
        self._renewed = time.monotonic()
        self._lease: asyncio.Task[None] | None = None

    async def site(self) -> Site:
        """Where this actor runs."""
        context = ray.get_runtime_context()
        gpus = tuple(context.get_accelerator_ids().get("GPU", []))
        return Site(context.get_node_id(), ray.util.get_node_ip_address(), gpus)

    async def free_port(self) -> int:
        """A TCP port that is free on this node now."""
        with socket.create_server(("", 0)) as server:
            port: int = server.getsockname()[1]
        return port

    async def hold(self, lease_s: float) -> None:
        """From now on end the worker and this actor when nobody calls `renew` for `lease_s`: a node
        that is cut off must not go on writing into a run that has moved on."""
        self._renewed = time.monotonic()
        self._lease = asyncio.create_task(self._end_when_forgotten(lease_s))

    async def renew(self) -> None:
        """Say that the supervisor still counts on this actor."""
        self._renewed = time.monotonic()

    async def start(self, start: Start) -> int:
        """Start the worker and return its process id. Raises OSError (cwd missing, no process)."""
        loop = asyncio.get_running_loop()
        self._events.clear()
        self._dropped, self._attempt = 0, start.attempt

        def on_event(event: Event) -> None:
            with suppress(RuntimeError):  # The loop is closed: the actor is going away.
                loop.call_soon_threadsafe(self._push, start.attempt, event)

        self._process = WorkerProcess(
            start.command,
            worker_env(dict(os.environ), start, ray.util.get_node_ip_address()),
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

    async def terminate(self) -> None:
        """SIGTERM the worker: it may save before it goes."""
        if self._process is not None:
            self._process.terminate()

    async def kill(self) -> bool:
        """SIGKILL the worker's session; True when it is gone."""
        if self._process is None:
            return True
        return await asyncio.to_thread(self._process.kill)

    async def _end_when_forgotten(self, lease_s: float) -> None:
        while time.monotonic() - self._renewed < lease_s:
            await asyncio.sleep(lease_s / 20)
        await self.kill()
        os._exit(1)  # Gives the actor's resources back, which nobody else could.

    def _push(self, attempt: int, event: Event) -> None:
        if attempt == self._attempt:
            self._events.append(event)
            self._more.set()


def worker_env(base: dict[str, str], start: Start, address: str) -> dict[str, str]:
    """The worker's environment on the node `address`; what the user set wins."""
    env = {**base, **start.env}
    env.setdefault("OMP_NUM_THREADS", str(start.cpus))
    interface = interface_of(address)
    if interface is not None:
        # Gloo would otherwise look the host's name up, which fails or gives 127.0.1.1 at times.
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    if start.hide_gpus:
        for name in GPU_VARIABLES:
            env[name] = start.env.get(name, "-1")
    return env


def interface_of(address: str) -> str | None:
    """The network interface that owns an IP address of this node."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return str(name)
    return None
