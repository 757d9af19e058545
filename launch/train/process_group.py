"""The default process group of a worker, whatever started it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


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
    place: dict[str, Any] = (
        {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    )
    bound = device if device.type == "cuda" else None
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    dist.init_process_group(backend, device_id=bound, timeout=timeout, **place)
    try:
        yield
    finally:
        # After an error the peers may be gone, and a teardown would wait for them.
        if sys.exc_info()[0] in (None, *orderly):
            dist.destroy_process_group()
