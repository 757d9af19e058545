"""What the measurements say: peaks, where they are reached, and which device falls behind."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any

from ..schema import Hardware

NEAR_PEAK = 0.9
SLOW = 0.95
"""A device is slow if the median of its rates, each over the ranks' median, is below this (our
choice: GPUs of one model differ by 1-3%)."""


def summarise(found: Iterable[Hardware]) -> dict[str, Any]:
    """`ranks`: each device's figures; `slow`: [{rank, share}], slow devices, worst first."""
    by_rank: dict[int, list[Hardware]] = defaultdict(list)
    for row in found:
        by_rank[row.rank].append(row)
    return {
        "ranks": [{"rank": rank, **_device(by_rank[rank])} for rank in sorted(by_rank)],
        "slow": _slow(by_rank),
    }


def _device(rows: list[Hardware]) -> dict[str, Any]:
    memory = {kind: _memory(group) for kind, group in _by(rows, "memory", "kind").items()}
    gemm = {dtype: _gemm(group) for dtype, group in _by(rows, "gemm", "dtype").items()}
    ridge = _ridge(gemm, memory)
    kinds = _by(rows, "attention", "kind").items()
    attention = {kind: _attention(group, ridge) for kind, group in kinds}
    experts, copies = (_peaks(_by(rows, bench, "kind")) for bench in ("experts", "copy"))
    return {
        "memory": memory,
        "gemm": gemm,
        "ridge": ridge,
        "attention": attention,
        "experts": experts,
        "copy": copies,
    }


def _peaks(groups: dict[str, list[Hardware]]) -> dict[str, float]:
    return {key: max(row.rate for row in group) for key, group in groups.items()}


def _by(rows: list[Hardware], bench: str, key: str) -> dict[str, list[Hardware]]:
    groups: dict[str, list[Hardware]] = defaultdict(list)
    for row in rows:
        if row.bench == bench:
            groups[getattr(row, key)].append(row)
    return groups


def _memory(rows: list[Hardware]) -> dict[str, Any]:
    """`rate` at the largest buffer (memory itself), `best` at `best_bytes` (perhaps a cache)."""
    largest, best = max(rows, key=lambda r: r.shape["bytes"]), max(rows, key=lambda r: r.rate)
    return {"rate": largest.rate, "best": best.rate, "best_bytes": best.shape["bytes"]}


def _gemm(rows: list[Hardware]) -> dict[str, Any]:
    """`peak` and its shape; `near_peak`: the product with the fewest FLOPs that reaches 0.9 of it
    (the paper's figure is about 200 GFLOP)."""
    best = max(rows, key=lambda r: r.rate)
    near = min((r for r in rows if r.rate >= NEAR_PEAK * best.rate), key=flops)
    return {
        "peak": best.rate,
        "shape": best.shape,
        "near_peak": {"flops": flops(near), "shape": near.shape},
    }


def flops(row: Hardware) -> float:
    """Of one call."""
    return row.rate * row.p50_s if row.unit == "FLOP/s" else 0.0


def _ridge(gemm: dict[str, Any], memory: dict[str, Any]) -> float | None:
    """FLOPs per byte at which the roofline bends, in the fastest dtype."""
    if not gemm or not memory:
        return None
    return max(g["peak"] for g in gemm.values()) / max(m["rate"] for m in memory.values())


def _attention(rows: list[Hardware], ridge: float | None) -> dict[str, Any]:
    """`saturates`: the shortest sequence at 0.9 of the best rate, from which it is bound by
    compute; `roofline`: the shortest whose FLOPs per byte pass the ridge, where a perfect kernel
    would be."""
    rows = sorted(rows, key=lambda r: r.shape["seq"])
    peak = max(row.rate for row in rows)
    dense = (r.shape["seq"] for r in rows if ridge and flops(r) / r.shape["bytes"] >= ridge)
    return {
        "peak": peak,
        "saturates": next(r.shape["seq"] for r in rows if r.rate >= NEAR_PEAK * peak),
        "roofline": next(dense, None),
    }


def _slow(by_rank: dict[int, list[Hardware]]) -> list[dict[str, Any]]:
    rates: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    for rank, rows in by_rank.items():
        for r in rows:
            rates[r.bench, r.kind, r.dtype, tuple(sorted(r.shape.items()))][rank] = r.rate
    shares: dict[int, list[float]] = defaultdict(list)
    for group in rates.values():
        middle = median(group.values())
        for rank, rate in group.items():
            shares[rank].append(rate / middle)
    scores = {rank: median(values) for rank, values in shares.items()}
    slow = [{"rank": rank, "share": share} for rank, share in scores.items() if share < SLOW]
    return sorted(slow, key=lambda entry: entry["share"])
