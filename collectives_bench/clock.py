"""The time of every single call: device events on a GPU, `perf_counter` on a CPU.

On a GPU the calls are queued and nothing waits in between, as in nccl-tests.
"""

import time
from collections.abc import Callable
from itertools import pairwise

import torch

Call = Callable[[], object]
POLL_S = 2e-4
QUEUE_SHARE = 0.7
"""Of the time-out, for a GPU's queue to end: before NCCL's own watchdog ends the process."""


def measure(
    call: Call, iterations: int, device: torch.device, timeout_s: float, late_s: float = 0.0
) -> list[float]:
    """Seconds of each of `iterations` calls, before each of which this rank sleeps `late_s`.

    TimeoutError where a GPU has not done them in time.
    """
    if device.type == "cuda":
        return _events(call, iterations, timeout_s, late_s)
    if late_s:
        return _late(call, iterations, late_s)
    # One reading for each call: it ends one and begins the next.
    marks = [time.perf_counter()]
    for _ in range(iterations):
        call()
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


def _late(call: Call, iterations: int, late_s: float) -> list[float]:
    times = []
    for _ in range(iterations):
        time.sleep(late_s)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _events(call: Call, iterations: int, timeout_s: float, late_s: float) -> list[float]:
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(iterations + 1)]
    starts = ends[:-1]
    if late_s:
        starts = [torch.cuda.Event(enable_timing=True) for _ in range(iterations)]
    ends[0].record()
    for start, end in zip(starts, ends[1:], strict=True):
        if late_s:
            time.sleep(late_s)
            start.record()
        call()
        end.record()
    wait(ends[-1], timeout_s)
    return [a.elapsed_time(b) / 1e3 for a, b in zip(starts, ends[1:], strict=True)]


def finish(device: torch.device, timeout_s: float) -> None:
    """Wait for what is queued; TimeoutError where that does not end in time."""
    if device.type == "cuda":
        event = torch.cuda.Event()
        event.record()
        wait(event, timeout_s)


def wait(event: torch.cuda.Event, timeout_s: float) -> None:
    """Poll for the event, because a synchronisation could not be left."""
    end = time.monotonic() + QUEUE_SHARE * timeout_s
    while not event.query():
        if time.monotonic() > end:
            raise TimeoutError(f"the GPU did not end its queue in {QUEUE_SHARE * timeout_s:.0f} s")
        time.sleep(POLL_S)
