"""The time of a call: device events on a GPU, `perf_counter` on a CPU.

A sample is a burst of calls, as long as makes the clock's own cost vanish; nothing waits for the
device between samples.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

Call = Callable[[], object]

MIN_SAMPLES = 5
MAX_SAMPLES = 200
BURST_S = {"cuda": 4e-3, "cpu": 2e-4}
"""Of a sample: an event costs the stream some 2 us, a reading of the CPU's clock 0.1 us."""
WARM_UP_S = 0.05


@dataclass(frozen=True)
class Times:
    """Seconds of one call, over `samples` bursts of `calls` calls each."""

    mean_s: float
    p50_s: float
    p95_s: float
    max_s: float
    samples: int
    calls: int


def measure(call: Call, device: torch.device, budget_s: float) -> Times:
    """Time `call` for about `budget_s` after a warm-up."""
    seconds = _warm_up(call, device)
    calls = max(1, round(BURST_S[device.type] / seconds))
    samples = int(budget_s / (calls * seconds))
    samples = max(MIN_SAMPLES, min(MAX_SAMPLES, samples))
    burst = _events if device.type == "cuda" else _perf_counter
    return _summary(burst(call, calls, samples), calls)


def bare(call: Call, device: torch.device, calls: int) -> float:
    """Mean seconds of a call in a plain loop, read once before and once after it."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


def _warm_up(call: Call, device: torch.device) -> float:
    """Call until the device is awake; returns about the seconds of one call."""
    bare(call, device, 1)
    calls, spent, seconds = 1, 0.0, 0.0
    while spent < WARM_UP_S:
        seconds = bare(call, device, calls)
        spent += seconds * calls
        calls = min(2 * calls, 1 << 14)
    return max(seconds, 1e-8)


def _events(call: Call, calls: int, samples: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        for _ in range(calls):
            call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 / calls for a, b in pairwise(events)]


def _perf_counter(call: Call, calls: int, samples: int) -> list[float]:
    marks = [time.perf_counter()]
    for _ in range(samples):
        for _ in range(calls):
            call()
        marks.append(time.perf_counter())
    return [(b - a) / calls for a, b in pairwise(marks)]


def _summary(seconds: list[float], calls: int) -> Times:
    ordered = torch.tensor(seconds, dtype=torch.float64).clamp_min(1e-12)
    p50, p95 = ordered.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return Times(float(ordered.mean()), p50, p95, float(ordered.max()), len(seconds), calls)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
