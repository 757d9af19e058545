"""The seats of a run, kept over its restarts: placed, made up after losses, enlarged, held.

Import this only within a `ray_session`.
"""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from .. import UserError
from .config import ClusterConfig
from .placement import Node, check_fits, cluster_text, gpus_per_worker, largest_group, live_nodes
from .reach import unreachable
from .seats import Reservation, Seat, end_actor, reserve

BUSY_NOTICE_S = 5.0
TRY_SIZE_S = 3.0
"""How long an elastic start waits for each size that would fit if the cluster were idle."""
LOOK_S = 2.0
"""How often to look whether lost or spare places can be had."""


class Pool:
    """Seats for the largest of `sizes` (descending) that can be had, and the spares."""

    def __init__(
        self, sizes: tuple[int, ...], config: ClusterConfig, on_wait: Callable[[str], None]
    ) -> None:
        """Nothing is placed yet; `on_wait` is told when the cluster has no room."""
        self.seats: list[Seat] = []
        self._sizes, self._config, self._on_wait = sizes, config, on_wait
        self._gpus = gpus_per_worker(live_nodes(), config)
        self._placements: list[PlacementGroup] = []
        self._hollow: list[tuple[PlacementGroup, int]] = []
        """Bundles whose actors were lost. Ray may yet place them on another node."""
        self._coming: Reservation | None = None
        self._looked = 0.0
        self._lease = Lease(config.heartbeat_timeout_s)

    @property
    def has_gpus(self) -> bool:
        """Whether each seat has a GPU."""
        return self._gpus > 0

    @property
    def size(self) -> int:
        """The largest group that the seats hold; 0: none."""
        return next((size for size in self._sizes if size <= len(self.seats)), 0)

    def fill(self, size: int) -> None:
        """Keep the seats if they hold `size` at least, else place all anew.

        `size` 0 is the first start, which does not wait for nodes that were never there. Raises
        UserError when there is no room, RayError when Ray loses an actor meanwhile.
        """
        self._drop_coming()
        if self.seats and self.size >= size:
            return
        self.release()
        if size == 0:
            check_fits(live_nodes(), self._sizes[-1], self._config)
        self._place(0.0 if size == 0 else self._config.rejoin_wait_s)

    def lose(self, lost: Iterable[Seat]) -> None:
        """Take seats out whose actors are gone or do not answer."""
        for seat in lost:
            end_actor(seat.actor)
            self.seats.remove(seat)
            self._hollow.append((seat.placement, seat.bundle))
        if self._config.strategy.startswith("STRICT") and self._hollow:
            self.release()
        self._lease.seats = tuple(self.seats)

    def extend(self) -> None:
        """Go on with getting the missing places and the spares, without waiting."""
        if self._coming is None:
            if time.monotonic() - self._looked < LOOK_S:
                return
            self._coming = self._next_extension()
            self._looked = time.monotonic()
        if self._coming is None:
            return
        try:
            seats = self._coming.advance(self._config, self._gpus, 0)
        except RayError:
            seats = None
            self._drop_coming()
        if seats is not None:
            self._accept(self._coming, seats)
            self._coming = None
        elif self._coming is not None and self._coming.is_late:
            self._drop_coming()

    def release(self) -> None:
        """End the actors and give the room back."""
        self._lease.seats = ()
        for seat in self.seats:
            end_actor(seat.actor)
        for placement in self._placements:
            remove_placement_group(placement)
        self.seats, self._placements, self._hollow = [], [], []

    def close(self) -> None:
        """Release, and drop what is on its way."""
        self._lease.stop()
        self._drop_coming()
        self.release()

    def _drop_coming(self) -> None:
        if self._coming is not None:
            self._coming.drop()
        self._coming = None

    def _accept(self, made: Reservation, seats: list[Seat]) -> None:
        self.seats += seats
        if made.own:
            self._placements.append(made.placement)
        taken = [(seat.placement, seat.bundle) for seat in seats]
        self._hollow = [bundle for bundle in self._hollow if bundle not in taken]
        self._lease.take(seats)
        self._lease.seats = tuple(self.seats)

    def _place(self, patience_s: float) -> None:
        """Wait until one of the sizes stands with all its actors; `patience_s` for the first."""
        began, told = time.monotonic(), False
        try:
            while True:
                waited = time.monotonic() - began
                coming = self._coming = self._aim(self._coming, waited - patience_s)
                seats = coming.advance(self._config, self._gpus, 1.0)
                if seats is not None:
                    break
                self._check_patience(waited, len(coming.bundles))
                if waited > BUSY_NOTICE_S and not told:
                    told = True
                    self._on_wait(f"waiting for room in the cluster: {cluster_text(live_nodes())}")
        except BaseException:
            self._drop_coming()
            raise
        self._coming = None
        self._accept(coming, seats)

    def _aim(self, coming: Reservation | None, overtime_s: float) -> Reservation:
        """What to wait for now: the present reservation, or another size, or on other nodes."""
        nodes = live_nodes()
        lost = unreachable(nodes)
        size = self._size_to_try([node for node in nodes if node.id not in lost], overtime_s)
        if coming is not None:
            # Actors that are on their way are not given up for another size.
            apt = coming.actors or (len(coming.bundles), coming.avoided) == (size, lost)
            if apt and not coming.is_late and lost <= coming.avoided:
                return coming
            coming.drop()
        return reserve(size, self._config, self._gpus, lost)

    def _size_to_try(self, nodes: list[Node], overtime_s: float) -> int:
        most = largest_group(nodes, self._config)
        possible = [size for size in self._sizes if size <= most]
        if overtime_s < 0 or not possible:
            return self._sizes[0]
        return possible[int(overtime_s / TRY_SIZE_S) % len(possible)]

    def _check_patience(self, waited: float, size: int) -> None:
        if waited > self._config.progress_timeout_s:
            raise UserError(
                f"no room for {size} workers after {waited:.0f} s "
                f"(cluster.progress_timeout_s): {cluster_text(live_nodes())}; "
                "free the cluster, or bring lost nodes back"
            )

    def _next_extension(self) -> Reservation | None:
        wanted = self._sizes[0] + self._config.spare_workers
        if len(self.seats) >= wanted:
            return None
        nodes = live_nodes()
        lost = unreachable(nodes)
        here = [node for node in nodes if node.id not in lost]
        return self._refill({node.id for node in here}) or self._enlarge(here, lost)

    def _refill(self, here: set[str]) -> Reservation | None:
        """An actor for a bundle that Ray still holds for us on a node that answers."""
        for placement, bundle in self._hollow:
            table = placement_group_table(placement)
            if table["state"] == "CREATED" and table["bundles_to_node_id"].get(bundle) in here:
                return Reservation(placement, (bundle,), own=False)
        return None

    def _enlarge(self, here: list[Node], lost: frozenset[str]) -> Reservation | None:
        """The places missing up to the largest size that may fit, else one spare."""
        most = largest_group(here, self._config)
        held = len(self.seats)
        target = next((size for size in self._sizes if held < size <= most), None)
        if target is not None:
            return reserve(target - held, self._config, self._gpus, lost)
        if held < self._sizes[0] or most <= held:
            return None
        used = {seat.site.node for seat in self.seats}
        elsewhere = [node for node in here if node.id not in used]
        if largest_group(elsewhere, self._config):
            lost |= used
        return reserve(1, self._config, self._gpus, lost)


class Lease:
    """Tells the actors on other nodes that they are still counted on; the others cannot be cut off
    from this process, and may outlast its being stopped by a terminal."""

    def __init__(self, heartbeat_timeout_s: float) -> None:
        """Start the thread."""
        self.seats: tuple[Seat, ...] = ()
        self._here = ray.get_runtime_context().get_node_id()
        self._lease_s = 2 * heartbeat_timeout_s
        self._over = threading.Event()
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def take(self, seats: Iterable[Seat]) -> None:
        """Make the actors end themselves when they are forgotten."""
        for seat in seats:
            if seat.site.node != self._here:
                seat.renewal = seat.actor.hold.remote(self._lease_s)

    def stop(self) -> None:
        """No renewals from now on."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._lease_s / 10):
            for seat in self.seats:
                # One call at a time: a lost actor must not gather them.
                if seat.renewal is None or not ray.wait([seat.renewal], timeout=0)[0]:
                    continue
                with suppress(RayError):
                    seat.renewal = seat.actor.renew.remote()
