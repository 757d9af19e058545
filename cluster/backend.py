"""What the supervisor asks of whatever starts its processes. It knows no more than this.

A `Kind` stands in the registry and opens a `Backend`, the connection to one cluster. From it come
`Seat`s: each has room for one worker on some node, and holds one attempt's process after the other.
Calls to a seat go over a network, so they answer with a `Future`, whose exception is SeatLost,
SeatSilent, or what the call itself says; a kind whose seats are in Python builds them on
`moelstrom.cluster.holder.Holder`.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from .config import ClusterConfig
from .spec import Event


class SeatLost(Exception):  # noqa: N818
    """The seat, or its node, is gone for good; the message says how."""


class SeatSilent(Exception):  # noqa: N818
    """A seat did not answer, but may again: perhaps only the network failed."""


@dataclass(frozen=True)
class Node:
    """A live node's name and totals, and the cluster's own name for it."""

    name: str
    cpus: int
    gpus: int
    id: str = ""

    def room(self, cpus: int, gpus: int) -> int:
        """How many workers of this size fit."""
        by_cpu = self.cpus // cpus
        return min(by_cpu, self.gpus // gpus) if gpus else by_cpu


@dataclass(frozen=True)
class Site:
    """Where a seat is: its node's id and address, and the indices of the GPUs that it has there."""

    node: str
    address: str
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """All that a seat needs to start its worker."""

    command: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    log_path: str | None
    cpus: int
    hide_gpus: bool
    attempt: int
    """Tells this worker's events from those of the ones before it."""


@dataclass(frozen=True)
class Poll:
    """An answer to a long poll; after an `exit` event nothing follows."""

    events: tuple[Event, ...]
    first: int
    """How many events of this attempt came before them."""
    silent_s: float | None
    """Seconds since the worker's last sign of life; None before the first."""
    stage: str | None
    """What the worker's last beat says that it does."""


class Seat(Protocol):
    """Room for one worker; see `Holder` for what the calls do."""

    @property
    def site(self) -> Site:
        """Where it is."""

    def free_port(self) -> "Future[int]":
        """A TCP port that is free on its node now."""

    def start(self, start: Start) -> "Future[int]":
        """Start the worker; its process id. OSError: no such folder there, or no process;
        UserError: a mistake of the user's that shows on the node."""

    def next_events(self, attempt: int, seen: int, timeout_s: float) -> "Future[Poll]":
        """What `attempt` sent after its first `seen` events, at once or within `timeout_s`."""

    def signal(self, number: int) -> "Future[None]":
        """Send the worker (not its children) a signal."""

    def kill(self) -> "Future[bool]":
        """SIGKILL the worker and its session; whether it is gone."""

    def hold(self, lease_s: float) -> "Future[None]":
        """From now on the seat ends its worker and itself, unless `renew` comes every `lease_s`."""

    def renew(self) -> "Future[None]":
        """Say that somebody still counts on it."""


class Reservation(Protocol):
    """Room that was asked for."""

    @property
    def count(self) -> int:
        """How many seats it will give, all or none."""

    @property
    def avoided(self) -> frozenset[str]:
        """Ids of the nodes that it must not use."""

    @property
    def is_granted(self) -> bool:
        """Whether the room is there, and only the seats are still to be made."""

    @property
    def is_late(self) -> bool:
        """Whether it has waited for so long that the cluster may be another by now."""

    def advance(self, timeout_s: float) -> Sequence[Seat] | None:
        """The seats, when they are there within `timeout_s`. Raises SeatLost when one died."""

    def drop(self) -> None:
        """Give up, and everything back."""


class Backend(Protocol):
    """One cluster, joined; every room that it gave is given back when it is closed."""

    @property
    def here(self) -> str:
        """Id of the node that this process runs on; empty where it is none of the cluster's."""

    def nodes(self) -> list[Node]:
        """The nodes that the cluster takes for live."""

    def silent(self, nodes: Sequence[Node]) -> frozenset[str]:
        """Ids of those among `nodes` that give no answer now."""

    def reserve(self, count: int, gpus: int, avoided: frozenset[str] = frozenset()) -> Reservation:
        """Ask for `count` seats of `config.cpus_per_worker` CPUs and `gpus` GPUs; does not wait."""

    def reclaim(self, gpus: int, here: frozenset[str]) -> Reservation | None:
        """The room of a seat that was ended, where the cluster kept it on a node of `here`."""

    def end(self, seat: Seat) -> None:
        """End a seat, whether it answers or not, and what runs in it; does not wait."""

    def release(self) -> None:
        """End every seat and give all room back."""


class Kind(Protocol):
    """A way to run workers, by its name in the registry."""

    @staticmethod
    def forecast(config: ClusterConfig, workers: int) -> list[Node]:
        """The nodes that `workers` would run on, for a dry run: starts nothing."""

    @staticmethod
    def open(config: ClusterConfig, workers: int) -> AbstractContextManager[Backend]:
        """Join the cluster, or start one for `workers`. Raises UserError when that fails."""
