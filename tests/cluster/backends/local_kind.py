"""A kind of cluster as another package would add it: processes of this machine, without Ray.

The seats of one backend share an event loop on a thread, so no lease may end this process.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moelstrom.cluster.backend import Node, Poll, Seat, Site, Start
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.holder import Holder

HERE = socket.gethostname()


class LocalSeat:
    """A holder on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.site = Site(HERE, "127.0.0.1", ())
        self._loop, self._holder = loop, Holder("127.0.0.1")

    def _call(self, coroutine: Any) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def free_port(self) -> "Future[int]":
        return self._call(self._holder.free_port())

    def start(self, start: Start) -> "Future[int]":
        return self._call(self._holder.start(start))

    def next_events(self, attempt: int, seen: int, timeout_s: float) -> "Future[Poll]":
        return self._call(self._holder.next_events(attempt, seen, timeout_s))

    def signal(self, number: int) -> "Future[None]":
        return self._call(self._holder.signal(number))

    def kill(self) -> "Future[bool]":
        return self._call(self._holder.kill())

    def hold(self, lease_s: float) -> "Future[None]":
        return self._call(self._holder.hold(lease_s))

    def renew(self) -> "Future[None]":
        return self._call(self._holder.renew())


@dataclass
class LocalReservation:
    """There is always room."""

    count: int
    seats: list[Seat]
    avoided: frozenset[str] = frozenset()
    is_granted: bool = True
    is_late: bool = False

    def advance(self, timeout_s: float) -> Sequence[Seat]:
        return self.seats

    def drop(self) -> None:
        pass


@dataclass
class LocalBackend:
    """This machine."""

    loop: asyncio.AbstractEventLoop
    workers: int
    here: str = HERE
    seats: list[LocalSeat] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        return [Node(HERE, self.workers, 0, HERE)]

    def silent(self, nodes: Sequence[Node]) -> frozenset[str]:
        return frozenset()

    def reserve(
        self, count: int, gpus: int, avoided: frozenset[str] = frozenset()
    ) -> LocalReservation:
        made = [LocalSeat(self.loop) for _ in range(count)]
        self.seats += made
        return LocalReservation(count, list(made))

    def reclaim(self, gpus: int, here: frozenset[str]) -> None:
        return None

    def end(self, seat: Seat) -> None:
        seat.kill()

    def release(self) -> None:
        for seat in self.seats:
            seat.kill().result()
        self.seats.clear()


class LocalKind:
    """What the entry point names."""

    @staticmethod
    def forecast(config: ClusterConfig, workers: int) -> list[Node]:
        return [Node(HERE, workers, 0, HERE)]

    @staticmethod
    @contextmanager
    def open(config: ClusterConfig, workers: int) -> Iterator[LocalBackend]:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        backend = LocalBackend(loop, workers)
        try:
            yield backend
        finally:
            backend.release()
            loop.call_soon_threadsafe(loop.stop)
