import os
import signal
import socket
from collections.abc import Iterator

import psutil
import pytest

from moelstrom.cluster.placement import Node, live_nodes
from moelstrom.cluster.reach import answers_at, unreachable


@pytest.fixture
def mute() -> Iterator[tuple[str, int]]:
    """Takes connections, as a stopped process's kernel does, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def test_a_raylet_answers(local_ray: None) -> None:
    nodes = live_nodes()
    assert len(nodes) == 1
    assert unreachable(nodes) == frozenset()


def test_a_stopped_raylet_does_not(local_ray: None) -> None:
    (node,) = live_nodes()
    children = psutil.Process(os.getpid()).children(recursive=True)
    (raylet,) = [child for child in children if child.name() == "raylet"]
    raylet.send_signal(signal.SIGSTOP)
    try:
        assert unreachable([node]) == {node.id}
    finally:
        raylet.send_signal(signal.SIGCONT)
    assert unreachable([node]) == frozenset()


def test_others_are_told_apart(local_ray: None, mute: tuple[str, int]) -> None:
    nodes = [
        *live_nodes(),
        Node("mute", 1, 0, "m", mute),
        Node("none", 1, 0, "n", ("127.0.0.1", 1)),
    ]
    assert unreachable(nodes) == {"m", "n"}
    assert not answers_at(mute)
    assert unreachable([]) == frozenset()
