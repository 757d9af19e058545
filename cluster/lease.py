"""Seats' leases: a node that is cut off must not go on writing into a run that has moved on."""

import threading
from collections.abc import Iterable
from concurrent.futures import Future

from .backend import Seat


class Leases:
    """Tells the seats on other nodes that they are still counted on; the others cannot be cut off
    from this process, and may outlast its being stopped by a terminal."""

    def __init__(self, heartbeat_timeout_s: float, here: str) -> None:
        """Start the thread; `here` is this process's node."""
        self._here, self._lease_s = here, 2 * heartbeat_timeout_s
        self._calls: dict[Seat, Future[None]] = {}
        """The call under way, or the last one, of each seat."""
        self._over = threading.Event()
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def take(self, seats: Iterable[Seat]) -> None:
        """Make the seats end themselves when they are forgotten."""
        for seat in seats:
            if seat.site.node != self._here:
                self._calls[seat] = seat.hold(self._lease_s)

    def drop(self, seats: Iterable[Seat]) -> None:
        """Renew these no more."""
        for seat in seats:
            self._calls.pop(seat, None)

    def stop(self) -> None:
        """No renewals from now on."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._lease_s / 10):
            for seat, call in list(self._calls.items()):
                # One call at a time: a lost seat must not gather them.
                if call.done() and seat in self._calls:
                    self._calls[seat] = seat.renew()
