import os
import signal
import socket
from collections.abc import Iterator

import psutil
import pytest

from moelstrom.cluster.backends.ray.reach import answers_at, unreachable


@pytest.fixture
def mute() -> Iterator[tuple[str, int]]:
    """Takes connections, as a stopped process's kernel does, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


@pytest.fixture
def raylet(local_ray: None) -> tuple[str, int]:
    import ray

    (node,) = ray.nodes()
    return node["NodeManagerAddress"], node["NodeManagerPort"]


def test_a_raylet_answers(raylet: tuple[str, int]) -> None:
    assert unreachable({"r": raylet}) == frozenset()


def test_a_stopped_raylet_does_not(raylet: tuple[str, int]) -> None:
    children = psutil.Process(os.getpid()).children(recursive=True)
    (process,) = [child for child in children if child.name() == "raylet"]
    process.send_signal(signal.SIGSTOP)
    try:
        assert unreachable({"r": raylet}) == {"r"}
    finally:
        process.send_signal(signal.SIGCONT)
    assert unreachable({"r": raylet}) == frozenset()


def test_others_are_told_apart(raylet: tuple[str, int], mute: tuple[str, int]) -> None:
    raylets = {"r": raylet, "m": mute, "n": ("127.0.0.1", 1)}
    assert unreachable(raylets) == {"m", "n"}
    assert not answers_at(mute)
    assert unreachable({}) == frozenset()
