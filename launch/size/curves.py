"""The sizing adviser's curves out of a hardware report."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import median
from typing import TypeVar

from ... import UserError
from ...collectives_bench.hardware.config import MEMORY_SETS
from ...collectives_bench.hardware.summary import caches, summarise
from ...collectives_bench.schema import BenchReport, Hardware
from ...collectives_bench.sizes import label
from ...kernels.devices import device as find_device
from ...kernels.targets import TARGETS, Target
from ...moe.sizing.curves import Curves, Gemm, Grouped

Point = TypeVar("Point")
BOTH = "forward+backward"


def measured(report: BenchReport, memory: int | None) -> Curves:
    """Curves by the median over ranks; `memory` overrides a device's bytes.

    UserError where the report lacks a benchmark that the adviser needs, or the device's memory.
    """
    rows = [row for row in report.hardware if row.bench == "memory" or row.dtype == "bf16"]
    device = report.hosts[0].device if report.hosts else "an unknown device"
    stream = _points(rows, "memory", "copy", lambda s: s["moved"])
    summary = summarise(rows, caches(report))["ranks"][0]
    gemms = _points(rows, "gemm", None, lambda s: (s["M"], s["N"], s["K"]))
    experts = _points(
        rows, "experts", BOTH, lambda s: (s["rows"], s["hidden"], s["ffn"], s["experts"])
    )
    attention = _points(rows, "attention", BOTH, lambda s: s["seq"])
    sheet = find_device(device)
    return Curves(
        label=f"measured on {device} ({report.started})",
        gemms=tuple(Gemm(*shape, rate) for shape, rate in gemms.items()),
        experts=tuple(Grouped(*shape, rate) for shape, rate in experts.items()),
        attention=tuple(sorted(attention.items())),
        memory_rate=_memory_rate(stream, max(caches(report).values(), default=0)),
        capacity=memory or _capacity(report, device),
        peak=sheet.bf16_flops if sheet else max(gemms.values()),
        near_peak_flops=summary["gemm"]["bf16"]["near_peak"]["flops"],
        measured=True,
    )


def _memory_rate(by_set: dict[int, float], cache: int) -> float:
    """That of the largest working set, which must be past the cache where that is known."""
    largest = max(by_set)
    if largest < MEMORY_SETS * cache:
        raise UserError(
            f"--hardware: memory was measured over {label(largest)} at most, which the cache of "
            f"{label(cache)} serves; measure again with max_bytes {label(MEMORY_SETS * cache)}"
        )
    return by_set[largest]


def _points(
    rows: Iterable[Hardware],
    bench: str,
    kind: str | None,
    size: Callable[[dict[str, int]], Point],
) -> dict[Point, float]:
    """Median rate over ranks at each size."""
    found: dict[Point, list[float]] = defaultdict(list)
    for row in rows:
        if row.bench == bench and kind in (None, row.kind):
            found[size(row.shape)].append(row.rate)
    if not found:
        wanted = f"{bench} ({kind})" if kind else f"{bench} in bf16"
        raise UserError(
            f"--hardware: the report has no {wanted}; measure it with `moelstrom bench hardware`"
        )
    return {key: median(rates) for key, rates in found.items()}


def device_target(report: BenchReport) -> Target | None:
    """The target of the report's devices; None for others, such as a CPU."""
    sheet = find_device(report.hosts[0].device) if report.hosts else None
    return TARGETS[sheet.target] if sheet else None


def _capacity(report: BenchReport, device: str) -> int:
    sheet = find_device(device)
    known = next((host.memory for host in report.hosts if host.memory), 0)
    found = known or (sheet.memory_bytes if sheet else 0)
    if not found:
        raise UserError(f"--memory: {device}'s is not known; give it, such as --memory 64GiB")
    return found
