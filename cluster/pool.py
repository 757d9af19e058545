"""The seats of a run, kept over its restarts: placed, made up after losses, enlarged, held."""

import time
from collections.abc import Callable, Sequence

from .. import UserError
from .backend import Backend, Node, Reservation, Seat, SeatLost
from .config import ClusterConfig
from .lease import Leases
from .placement import check_fits, cluster_text, gpus_per_worker, largest_group

BUSY_NOTICE_S = 5.0
TRY_SIZE_S = 3.0
"""How long an elastic start waits for each size that would fit if the cluster were idle."""
LOOK_S = 2.0
"""How often to look whether lost or spare places can be had."""


class Pool:
    """Seats for the largest of `sizes` (descending) that can be had, and the spares."""

    def __init__(
        self,
        backend: Backend,
        sizes: tuple[int, ...],
        config: ClusterConfig,
        on_wait: Callable[[str], None],
    ) -> None:
        """Nothing is placed yet; `on_wait` is told when the cluster has no room."""
        self.seats: list[Seat] = []
        self.backend = backend
        self._sizes, self._config, self._on_wait = sizes, config, on_wait
        self._gpus = gpus_per_worker(backend.nodes(), config)
        self._coming: Reservation | None = None
        self._looked = 0.0
        self._clear_at = 0.0
        """Until then a worker may still run on a node that is cut off (monotonic clock)."""
        self._leases = Leases(config.heartbeat_timeout_s, backend.here)

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
        UserError when there is no room, SeatLost when a seat dies meanwhile.
        """
        self._drop_coming()
        if not self.seats or self.size < size:
            self.release()
            if size == 0:
                check_fits(self.backend.nodes(), self._sizes[-1], self._config)
            self._place(0.0 if size == 0 else self._config.rejoin_wait_s)
        # Two groups must never write into one run.
        time.sleep(max(0.0, self._clear_at - time.monotonic()))

    def lose(self, lost: Sequence[Seat]) -> None:
        """Take seats out that are gone or do not answer."""
        if lost:
            self._clear_at = max(self._clear_at, self._leases_end(lost))
        for seat in lost:
            self.backend.end(seat)
            self.seats.remove(seat)
        if self._config.strategy.startswith("STRICT") and lost:
            self.release()

    def _leases_end(self, lost: Sequence[Seat]) -> float:
        """When no worker of these seats is left. On a node that answers, ending the seat does."""
        nodes = self.backend.nodes()
        silent = self.backend.silent(nodes)
        answering = {node.id for node in nodes if node.id not in silent}
        self._leases.drop(seat for seat in lost if seat.site.node in answering)
        return self._leases.drop(lost)

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
            seats = self._coming.advance(0)
        except SeatLost:
            seats = None
            self._drop_coming()
        if seats is not None:
            self._accept(seats)
        elif self._coming is not None and self._coming.is_late:
            self._drop_coming()

    def release(self) -> None:
        """End the seats and give the room back."""
        self._leases.drop(self.seats)
        self.seats = []
        self.backend.release()

    def close(self) -> None:
        """Release, and drop what is on its way."""
        self._leases.stop()
        self._drop_coming()
        self.release()

    def _drop_coming(self) -> None:
        if self._coming is not None:
            self._coming.drop()
        self._coming = None

    def _accept(self, seats: Sequence[Seat]) -> None:
        """They have come."""
        self._coming = None
        self.seats += seats
        self._leases.take(seats)

    def _place(self, patience_s: float) -> None:
        """Wait until one of the sizes stands with all its seats; `patience_s` for the first."""
        began, told = time.monotonic(), False
        try:
            while True:
                waited = time.monotonic() - began
                self._coming = self._aim(self._coming, waited - patience_s)
                seats = self._coming.advance(1.0)
                if seats is not None:
                    break
                self._check_patience(waited, self._coming.count)
                if waited > BUSY_NOTICE_S and not told:
                    told = True
                    nodes = cluster_text(self.backend.nodes())
                    self._on_wait(f"waiting for room in the cluster: {nodes}")
        except BaseException:
            self._drop_coming()
            raise
        self._accept(seats)

    def _aim(self, coming: Reservation | None, overtime_s: float) -> Reservation:
        """What to wait for now: the present reservation, or another size, or on other nodes."""
        nodes = self.backend.nodes()
        lost = self.backend.silent(nodes)
        size = self._size_to_try([node for node in nodes if node.id not in lost], overtime_s)
        if coming is not None:
            # Seats that are on their way are not given up for another size.
            apt = coming.is_granted or (coming.count, coming.avoided) == (size, lost)
            if apt and not coming.is_late and lost <= coming.avoided:
                return coming
            coming.drop()
        return self.backend.reserve(size, self._gpus, lost)

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
                f"(cluster.progress_timeout_s): {cluster_text(self.backend.nodes())}; "
                "free the cluster, or bring lost nodes back"
            )

    def _next_extension(self) -> Reservation | None:
        wanted = self._sizes[0] + self._config.spare_workers
        if len(self.seats) >= wanted:
            return None
        nodes = self.backend.nodes()
        lost = self.backend.silent(nodes)
        here = [node for node in nodes if node.id not in lost]
        kept = self.backend.reclaim(self._gpus, frozenset(node.id for node in here))
        return kept or self._enlarge(here, lost)

    def _enlarge(self, here: list[Node], lost: frozenset[str]) -> Reservation | None:
        """The places missing up to the largest size that may fit, else one spare."""
        most = largest_group(here, self._config)
        held = len(self.seats)
        target = next((size for size in self._sizes if held < size <= most), None)
        if target is not None:
            return self.backend.reserve(target - held, self._gpus, lost)
        if held < self._sizes[0] or most <= held:
            return None
        used = {seat.site.node for seat in self.seats}
        elsewhere = [node for node in here if node.id not in used]
        if largest_group(elsewhere, self._config):
            lost |= used
        return self.backend.reserve(1, self._gpus, lost)
