"""The clock's arithmetic, on a clock of our own."""

import pytest
import torch

from moelstrom.collectives_bench.hardware import clock

CPU = torch.device("cpu")


class Clock:
    """Time passes only in calls: `costs` in turn, then the last for ever; each reading is free."""

    def __init__(self, *costs: float) -> None:
        self.now, self.costs, self.calls = 0.0, list(costs), 0

    def perf_counter(self) -> float:
        return self.now

    def call(self) -> None:
        self.calls += 1
        self.now += self.costs.pop(0) if len(self.costs) > 1 else self.costs[0]


@pytest.mark.parametrize("cost", [1e-7, 3e-5, 2e-2, 0.4])
def test_a_steady_call_takes_its_time(monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    fake = Clock(cost)
    monkeypatch.setattr(clock, "time", fake)
    found = clock.measure(fake.call, CPU, 0.1)
    for value in (found.mean_s, found.p50_s, found.p95_s, found.max_s):
        assert value == pytest.approx(cost, rel=1e-6)
    assert clock.MIN_SAMPLES <= found.samples <= clock.MAX_SAMPLES
    # A sample outweighs the reading of the clock, and the budget holds where it can.
    assert found.calls * cost >= 0.5 * clock.BURST_S["cpu"]
    assert found.samples * found.calls * cost <= 0.11 or found.samples == clock.MIN_SAMPLES


def test_the_first_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Clock(5.0, 3.0, 0.01)
    monkeypatch.setattr(clock, "time", fake)
    found = clock.measure(fake.call, CPU, 0.5)
    assert found.max_s == pytest.approx(0.01) and found.p50_s == pytest.approx(0.01)


def test_an_outlier_is_the_maximum_not_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Clock(*[0.01] * 20, 0.5, 0.01)
    monkeypatch.setattr(clock, "time", fake)
    found = clock.measure(fake.call, CPU, 0.3)
    assert (found.p50_s, found.max_s) == (pytest.approx(0.01), pytest.approx(0.5))
    assert found.mean_s > found.p50_s


def test_the_bare_loop_is_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Clock(1.0, 2.0, 3.0)
    monkeypatch.setattr(clock, "time", fake)
    assert clock.bare(fake.call, CPU, 3) == 2.0 and fake.calls == 3
