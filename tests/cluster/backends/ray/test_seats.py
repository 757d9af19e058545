"""Ray's errors in the supervisor's words."""

from typing import Any

import pytest

from moelstrom.cluster.backend import SeatLost, SeatSilent


@pytest.fixture
def seats(local_ray: None) -> Any:
    from moelstrom.cluster.backends.ray import seats

    return seats


def test_a_dead_actor_is_told_by_the_line_that_says_why(seats: Any) -> None:
    from ray.exceptions import RaySystemError

    error = RaySystemError("class_name: X\n  The actor died because its node has died.\nmore")
    told = seats.translated(error)
    assert isinstance(told, SeatLost)
    assert str(told) == "The actor died because its node has died."


def test_an_actor_that_may_come_back_is_silent(seats: Any) -> None:
    from ray.exceptions import ActorUnavailableError

    assert isinstance(seats.translated(ActorUnavailableError("no answer", b"1" * 16)), SeatSilent)


def test_a_refusal_of_the_node_stays_one(seats: Any) -> None:
    """Ray shows an OSError of the actor with the actor's whole traceback."""
    told = seats.translated(FileNotFoundError("traceback\n  of the actor\nno such folder: x"))
    assert type(told) is OSError
    assert str(told) == "no such folder: x"
