"""Timing on the GPU: interleaved rounds, cold L2, CUDA events."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

Call = Callable[[], object]

FLUSH_BYTES = 512 << 20
"""Written before every timed call: several times any L2."""
FLUSHES = 24
"""Writes in a row: some 4 ms, in which the host queues the call's launches, as it runs ahead of the
GPU in training. What waits for the host inside the call still waits."""


class DeviceLostError(Exception):
    """The GPU answers no more in this process (an illegal access, say)."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call over `rounds` rounds; `peak_bytes` is what one call allocates beside
    its inputs, outputs included."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int
    peak_bytes: int


@dataclass(frozen=True)
class Rounds:
    """How often to call: `rounds` each, but `slow_rounds` for calls above `slow_ms`."""

    rounds: int
    slow_rounds: int
    slow_ms: float = 40.0


def measure(
    calls: Mapping[str, Call], plan: Rounds, failed: Callable[[str, Exception], None]
) -> dict[str, Timing]:
    """Time every call, round after round in turn, so that clocks and heat fall on all alike.

    A call that raises is handed to `failed` and left out. Raises DeviceLostError where the GPU is
    gone.
    """
    peaks, rounds = {}, {}
    for name, call in calls.items():
        try:
            peaks[name], rounds[name] = _warm_up(call, plan)
        except Exception as error:
            failed(name, error)
            still_there(error)
            free()
    samples: dict[str, list[float]] = {name: [] for name in peaks}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for index in range(max(rounds.values(), default=0)):
        running = [name for name in peaks if index < rounds[name]]
        events = {name: _timed(calls[name], flush) for name in running}
        torch.cuda.synchronize()
        for name, (start, end) in events.items():
            samples[name].append(start.elapsed_time(end))
    return {name: _summary(samples[name], peaks[name]) for name in peaks}


def burst(call: Call, budget_ms: float = 50.0) -> float:
    """Median milliseconds of a call among calls back to back, for about `budget_ms` in all: quicker
    than `measure`, with warm caches."""
    call()
    torch.cuda.synchronize()
    estimate = max(_burst(call, 3), 1e-3)
    return _burst(call, max(4, min(40, int(budget_ms / estimate))))


def _burst(call: Call, repeats: int) -> float:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return median(a.elapsed_time(b) for a, b in pairwise(events))


def still_there(error: Exception) -> None:
    """Raise DeviceLostError from `error` if the GPU is gone with it."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        raise DeviceLostError(reason(error)) from error


def reason(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def free() -> None:
    """Return what nothing holds to the device."""
    gc.collect()
    torch.cuda.empty_cache()


def _warm_up(call: Call, plan: Rounds) -> tuple[int, int]:
    """(bytes one call allocates, rounds to give it)."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    slow = start.elapsed_time(end) > plan.slow_ms
    if not slow:
        call()
    return peak, plan.slow_rounds if slow else plan.rounds


def _timed(call: Call, flush: torch.Tensor) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(FLUSHES):
        flush.zero_()
    start.record()
    call()
    end.record()
    return start, end


def _summary(samples: list[float], peak: int) -> Timing:
    ordered = torch.tensor(samples, dtype=torch.float64)
    low, median, high = ordered.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return Timing(median.item(), low.item(), high.item(), len(samples), peak)
