"""A lease that the supervisor takes for over is over where it is held."""

import asyncio
import time
from concurrent.futures import Future
from typing import Any

import pytest

from moelstrom.cluster.backend import Site
from moelstrom.cluster.holder import Holder
from moelstrom.cluster.lease import Leases


class Far:
    """A seat on another node, whose calls are answered when the test says so."""

    site = Site("far", "10.0.0.2", ())

    def __init__(self) -> None:
        self.calls: list[Future[None]] = []

    def hold(self, lease_s: float) -> "Future[None]":
        self.calls.append(Future())
        return self.calls[-1]

    def renew(self) -> "Future[None]":
        return self.hold(0)


def far() -> Any:
    """What a lease asks of a seat, and its calls."""
    return Far()


def until(ready: Any) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_end_counts_from_the_last_answer_that_was_heard() -> None:
    leases, seat = Leases(1.0, here="here"), far()
    leases.take([seat])
    for number in range(3):
        seat.calls[number].set_result(None)
        until(lambda number=number: len(seat.calls) == number + 2)
    heard = time.monotonic()
    end = leases.drop([seat])
    leases.stop()
    assert heard + 1 < end < time.monotonic() + 2 * 1.05 + 1 + 0.1
    assert leases.drop([seat]) == 0


def test_seats_of_this_node_have_none() -> None:
    leases, seat = Leases(1.0, here="far"), far()
    leases.take([seat])
    leases.stop()
    assert not seat.calls and leases.drop([seat]) == 0


def test_a_call_that_comes_late_does_not_lengthen_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last renewal was under way during the cut: it counts from the answer before it."""
    now = [100.0]
    monkeypatch.setattr("moelstrom.cluster.holder.time.monotonic", lambda: now[0])

    async def counted() -> list[float]:
        holder, found = Holder("127.0.0.1"), []
        for moment in (101.0, 102.0, 109.0):
            now[0] = moment
            await holder.renew()
            found.append(holder.counted)
        return found

    assert asyncio.run(counted()) == [100.0, 101.0, 102.0]
