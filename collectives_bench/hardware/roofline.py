"""Where the roofline bends, from what was measured."""

from collections.abc import Mapping
from typing import Any


def ridge(found: Mapping[str, Any]) -> float | None:
    """FLOPs per byte from which a kernel is bound by compute, in the fastest dtype, out of a
    device's summary; None where products or the memory itself were not measured."""
    peaks = [figures["peak"] for figures in found.get("gemm", {}).values()]
    rates = [m["rate"] for m in found.get("memory", {}).values() if m["rate"]]
    return max(peaks) / max(rates) if peaks and rates else None
