"""The Ray actor that holds one worker process on its node."""

import asyncio
import os
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from .process import WorkerProcess
from .spec import Event

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


@dataclass(frozen=True)
class Poll:
    """An answer to a long poll; after an `exit` event nothing follows."""

    events: tuple[Event, ...]
    silent_s: float | None
    """Seconds since the worker's last sign of life; None before the first."""


class WorkerActor:
    """Runs in a Ray worker process; all methods run on its event loop."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._process: WorkerProcess | None = None

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

    async def start(self, start: Start) -> int:
        """Start the worker and return its process id. Raises OSError (cwd missing, no process)."""
        loop = asyncio.get_running_loop()

        def on_event(event: Event) -> None:
            with suppress(RuntimeError):  # The loop is closed: the actor is going away.
                loop.call_soon_threadsafe(self._push, event)

        self._process = WorkerProcess(
            start.command,
            worker_env(dict(os.environ), start, ray.util.get_node_ip_address()),
            cwd=start.cwd,
            log_path=None if start.log_path is None else Path(start.log_path),
            on_event=on_event,
        )
        return self._process.pid

    async def next_events(self, timeout_s: float) -> Poll:
        """Events as soon as there are any, or an empty answer after `timeout_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        events = tuple(self._events)
        self._events.clear()
        self._ready.clear()
        return Poll(events, None if self._process is None else self._process.silent_s)

    async def kill(self) -> bool:
        """SIGKILL the worker's session; True when it is gone."""
        if self._process is None:
            return True
        return await asyncio.to_thread(self._process.kill)

    async def pid(self) -> int | None:
        """The worker's process id; None before `start`."""
        return None if self._process is None else self._process.pid

    def _push(self, event: Event) -> None:
        self._events.append(event)
        self._ready.set()


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
