"""Actors on their way: room reserved for them, then started, then known by where they landed."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .actor import Site, WorkerActor
from .config import ClusterConfig

START_TIMEOUT_S = 120.0
"""For Ray to start its own processes on the nodes."""
PATIENCE_S = 15.0
"""How long a reservation waits for room before it is thought over."""


@dataclass(eq=False)
class Seat:
    """An actor that can hold a worker, and the bundle that it takes."""

    actor: Any
    site: Site
    placement: PlacementGroup
    bundle: int
    renewal: Any = None
    """The call under way that renews its lease."""


@dataclass(eq=False)
class Reservation:
    """Some bundles of a placement group, and the actors that take them once it stands."""

    placement: PlacementGroup
    bundles: Sequence[int]
    avoided: frozenset[str] = frozenset()
    """Nodes that it must not use."""
    own: bool = True
    """Whether it made the group, and takes it away when it is dropped."""
    began: float = field(default_factory=time.monotonic)
    actors: list[Any] = field(default_factory=list)
    _stands: Any = None
    _sites: list[Any] = field(default_factory=list)

    @property
    def is_late(self) -> bool:
        """Whether it has waited for so long that the cluster may be another by now."""
        limit = START_TIMEOUT_S if self.actors else PATIENCE_S
        return time.monotonic() - self.began > limit

    def advance(self, config: ClusterConfig, gpus: int, timeout_s: float) -> list[Seat] | None:
        """The seats, once all actors have told where they are; None until then.

        Raises RayError when one of them died.
        """
        if self._stands is None:
            self._stands = self.placement.ready()
        if not self.actors:
            if not ray.wait([self._stands], timeout=timeout_s)[0]:
                return None
            self.actors = [self._actor(bundle, config, gpus) for bundle in self.bundles]
            self._sites = [actor.site.remote() for actor in self.actors]
        ready = ray.wait(self._sites, num_returns=len(self._sites), timeout=timeout_s)[0]
        if len(ready) < len(self._sites):
            return None
        sites = ray.get(self._sites)
        return [
            Seat(actor, site, self.placement, bundle)
            for actor, site, bundle in zip(self.actors, sites, self.bundles, strict=True)
        ]

    def drop(self) -> None:
        """Give everything back."""
        for actor in self.actors:
            end_actor(actor)
        if self.own:
            remove_placement_group(self.placement)

    def _actor(self, bundle: int, config: ClusterConfig, gpus: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(
            self.placement, placement_group_bundle_index=bundle
        )
        options = ray.remote(WorkerActor).options(
            num_cpus=config.cpus_per_worker, num_gpus=gpus, scheduling_strategy=strategy
        )
        return options.remote()


def reserve(
    count: int, config: ClusterConfig, gpus: int, avoided: frozenset[str] = frozenset()
) -> Reservation:
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
    return Reservation(placement, range(count), avoided)


def end_actor(actor: Any) -> None:
    """Make Ray kill it; does not wait."""
    with suppress(RayError, ValueError):
        ray.kill(actor)
