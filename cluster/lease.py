"""Seats' leases: a node that is cut off must not go on writing into a run that has moved on.

A seat counts its lease from when it answered the call before the last one it got. That call shows
that its answer was heard, so the supervisor, which counts from when it heard the last answer, can
only be later: once its own count is over, the seat's surely is, whatever a call did on its way.
"""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future

from .backend import Seat

KILL_S = 1.0
"""For a seat to end its worker once its lease is over."""


class Leases:
    """Tells the seats on other nodes that they are still counted on; the others cannot be cut off
    from this process, and may outlast its being stopped by a terminal."""

    def __init__(self, heartbeat_timeout_s: float, here: str) -> None:
        """Start the thread; `here` is this process's node."""
        self._here, self._lease_s = here, 2 * heartbeat_timeout_s
        self._calls: dict[Seat, Future[None]] = {}
        """The call under way, or the last one, of each seat."""
        self._heard: dict[Seat, float] = {}
        """When the last answer was seen, by the monotonic clock."""
        self._over = threading.Event()
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def take(self, seats: Iterable[Seat]) -> None:
        """Make the seats end themselves when they are forgotten."""
        for seat in seats:
            if seat.site.node != self._here:
                self._calls[seat] = seat.hold(self._lease_s)

    def drop(self, seats: Iterable[Seat]) -> float:
        """Renew these no more; returns when, by the monotonic clock, all their leases are over."""
        ends = [0.0]
        for seat in seats:
            if self._calls.pop(seat, None) is not None:
                # A call that is under way may still be answered: but not before now.
                heard = self._heard.pop(seat, time.monotonic())
                ends.append(heard + 1.05 * self._lease_s + KILL_S)
        return max(ends)

    def stop(self) -> None:
        """No renewals from now on."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._lease_s / 10):
            for seat, call in list(self._calls.items()):
                # One call at a time: the next one tells the seat that this one's answer was heard.
                if not call.done():
                    continue
                if call.exception() is None:
                    self._heard[seat] = time.monotonic()
                if seat in self._calls:
                    self._calls[seat] = seat.renew()
