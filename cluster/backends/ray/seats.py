"""Actors on their way: room reserved for them, then started, then known by where they landed.

Import this only within a `ray_session`.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .... import UserError
from ...backend import Poll, SeatLost, SeatSilent, Site, Start
from ...config import ClusterConfig
from .actor import WorkerActor

START_TIMEOUT_S = 120.0
"""For Ray to start its own processes on the nodes."""
USER_ERROR = f"{UserError.__module__}.{UserError.__qualname__}"
PATIENCE_S = 15.0
"""How long a reservation waits for room before it is thought over."""


@dataclass(eq=False)
class RaySeat:
    """An actor that can hold a worker, and the bundle that it takes."""

    actor: Any
    site: Site
    placement: PlacementGroup
    bundle: int

    def free_port(self) -> "Future[int]":
        """See `Seat`."""
        return _answer(self.actor.free_port.remote())

    def start(self, start: Start) -> "Future[int]":
        """See `Seat`."""
        return _answer(self.actor.start.remote(start))

    def next_events(self, attempt: int, seen: int, timeout_s: float) -> "Future[Poll]":
        """See `Seat`."""
        return _answer(self.actor.next_events.remote(attempt, seen, timeout_s))

    def signal(self, number: int) -> "Future[None]":
        """See `Seat`."""
        return _answer(self.actor.signal.remote(number))

    def kill(self) -> "Future[bool]":
        """See `Seat`."""
        return _answer(self.actor.kill.remote())

    def hold(self, lease_s: float) -> "Future[None]":
        """See `Seat`."""
        return _answer(self.actor.hold.remote(lease_s))

    def renew(self) -> "Future[None]":
        """See `Seat`."""
        return _answer(self.actor.renew.remote())


@dataclass(eq=False)
class RayReservation:
    """Some bundles of a placement group, and the actors that take them once it stands."""

    placement: PlacementGroup
    bundles: Sequence[int]
    config: ClusterConfig
    gpus: int
    accept: Callable[["RayReservation", Sequence[RaySeat]], None]
    """Told of the seats before they are given."""
    avoided: frozenset[str] = frozenset()
    own: bool = True
    """Whether it made the group, and takes it away when it is dropped."""
    began: float = field(default_factory=time.monotonic)
    actors: list[Any] = field(default_factory=list)
    _stands: Any = None
    _sites: list[Any] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many seats it will give."""
        return len(self.bundles)

    @property
    def is_granted(self) -> bool:
        """Whether its actors are on their way."""
        return bool(self.actors)

    @property
    def is_late(self) -> bool:
        """Whether it has waited for so long that the cluster may be another by now."""
        limit = START_TIMEOUT_S if self.actors else PATIENCE_S
        return time.monotonic() - self.began > limit

    def advance(self, timeout_s: float) -> Sequence[RaySeat] | None:
        """The seats, once all actors have told where they are; None until then.

        Raises SeatLost when one of them died.
        """
        try:
            sites = self._landed(timeout_s)
        except RayError as error:
            raise SeatLost(_cause(error)) from error
        if sites is None:
            return None
        seats = [
            RaySeat(actor, site, self.placement, bundle)
            for actor, site, bundle in zip(self.actors, sites, self.bundles, strict=True)
        ]
        self.accept(self, seats)
        return seats

    def drop(self) -> None:
        """Give everything back."""
        for actor in self.actors:
            end_actor(actor)
        if self.own:
            remove_placement_group(self.placement)

    def _landed(self, timeout_s: float) -> list[Site] | None:
        if self._stands is None:
            self._stands = self.placement.ready()
        if not self.actors:
            if not ray.wait([self._stands], timeout=timeout_s)[0]:
                return None
            self.actors = [self._actor(bundle) for bundle in self.bundles]
            self._sites = [actor.site.remote() for actor in self.actors]
        ready = ray.wait(self._sites, num_returns=len(self._sites), timeout=timeout_s)[0]
        return ray.get(self._sites) if len(ready) == len(self._sites) else None

    def _actor(self, bundle: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(
            self.placement, placement_group_bundle_index=bundle
        )
        options = ray.remote(WorkerActor).options(
            num_cpus=self.config.cpus_per_worker,
            num_gpus=self.gpus,
            scheduling_strategy=strategy,
        )
        return options.remote()


def reserve(
    count: int,
    config: ClusterConfig,
    gpus: int,
    avoided: frozenset[str],
    accept: Callable[[RayReservation, Sequence[RaySeat]], None],
) -> RayReservation:
    """Ask for room for `count` actors, all or none, on other nodes than the avoided (Ray ids)."""
    bundle: dict[str, float] = {"CPU": config.cpus_per_worker}
    if gpus:
        bundle["GPU"] = gpus
    selector = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
    placement = placement_group(
        [dict(bundle) for _ in range(count)],
        strategy=config.strategy,
        bundle_label_selector=[selector] * count if avoided else None,
    )
    return RayReservation(placement, range(count), config, gpus, accept, avoided)


def end_actor(actor: Any) -> None:
    """Make Ray kill it; does not wait."""
    with suppress(RayError, ValueError):
        ray.kill(actor)


def _answer(call: Any) -> "Future[Any]":
    """An actor's answer, with Ray's errors in the supervisor's words."""
    answer: Future[Any] = Future()

    def pass_on(come: "Future[Any]") -> None:
        error = come.exception()
        if error is None:
            answer.set_result(come.result())
        else:
            answer.set_exception(translated(error))

    call.future().add_done_callback(pass_on)
    return answer


def translated(error: BaseException) -> BaseException:
    """An actor's error as `backend` tells it."""
    # An error of the called method itself comes as both its own class and Ray's: OSError means
    # more to the caller.
    if isinstance(error, UserError):
        return UserError(str(error).strip().splitlines()[-1].removeprefix(f"{USER_ERROR}: "))
    if isinstance(error, OSError):
        return OSError(str(error).strip().splitlines()[-1])
    if isinstance(error, ActorUnavailableError):
        return SeatSilent(_cause(error))
    return SeatLost(_cause(error)) if isinstance(error, RayError) else error


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "died" in line), lines[0] if lines else repr(error))
