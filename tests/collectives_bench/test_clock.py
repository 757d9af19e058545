"""Which time is counted."""

import time
from itertools import pairwise

import pytest
import torch

from moelstrom.collectives_bench.clock import measure

CPU = torch.device("cpu")


def test_every_call_is_timed_alone() -> None:
    sleeps = iter([0.01, 0.05, 0.01])
    times = measure(lambda: time.sleep(next(sleeps)), 3, CPU, 10)
    assert len(times) == 3 and min(times) >= 0.01
    assert times[1] >= 0.05 and times[1] > max(times[0], times[2])


def test_coming_late_is_not_counted() -> None:
    calls: list[float] = []
    times = measure(lambda: calls.append(time.perf_counter()), 3, CPU, 10, late_s=0.05)
    assert len(times) == 3 and max(times) < 0.05
    assert min(b - a for a, b in pairwise(calls)) >= 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_events_time_the_device() -> None:
    device = torch.device("cuda", 0)
    x = torch.randn(4096, 4096, device=device)
    for late_s in (0.0, 0.02):
        times = measure(lambda: x @ x, 10, device, 10, late_s)
        assert len(times) == 10 and 0 < sorted(times)[5] < 0.02
    with pytest.raises(TimeoutError, match="did not end its queue"):
        measure(lambda: [x @ x for _ in range(2000)], 10, device, 0.01)
