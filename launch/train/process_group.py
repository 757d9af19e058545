"""The default process group of a worker, whatever started it."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

GENERATION_VARIABLE = "MOELSTROM_GENERATION"
"""Set by our supervisor, which gives an address of the node's own."""
MEETING = timedelta(minutes=30)
"""How long ranks wait for each other at the start, as torch does by default."""


@contextmanager
def process_group(
    device: torch.device,
    timeout_s: float | None = None,
    orderly: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """The default process group: env:// when a launcher started us, else of one process.

    `timeout_s` is how long a collective may take; None: torch's own default. `orderly` are errors
    that every rank raises together.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    bound = device if device.type == "cuda" else None
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    dist.init_process_group(backend, device_id=bound, timeout=timeout, **_place())
    try:
        yield
    finally:
        # After an error the peers may be gone, and a teardown would wait for them.
        if sys.exc_info()[0] in (None, *orderly):
            dist.destroy_process_group()


def _place() -> dict[str, Any]:
    """This rank's place in its group, for `init_process_group`; empty where env:// says all."""
    if "RANK" not in os.environ:
        return {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if GENERATION_VARIABLE not in os.environ:
        return {}
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return {"store": _store(rank, size), "rank": rank, "world_size": size}


def _store(rank: int, size: int) -> dist.Store:
    """The store by which the ranks of our own supervisor meet. It asks nobody who he is, so rank 0
    listens on the address that its peers were given, and not on every one, as env:// would."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank:
        return dist.TCPStore(host, port, size, timeout=MEETING)
    server = socket.create_server((host, port), backlog=max(128, size))
    # The store owns the socket from here on.
    return dist.TCPStore(host, port, size, True, MEETING, master_listen_fd=server.detach())
