"""What the measurements say: peaks, where they are reached, and which device falls behind."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from ... import UserError
from ..schema import BenchReport, Hardware
from ..sizes import label
from . import PROBES
from .config import MEMORY_SETS
from .probe import grouped
from .roofline import ridge

SLOW = 0.95
"""A device is slow if the median of its rates, each over the ranks' median, is below this (our
choice: GPUs of one model differ by 1-3%)."""


def caches(report: BenchReport) -> dict[int, int]:
    """Bytes of each rank's last cache; without those that the report does not know."""
    return {rank: host.cache for host in report.hosts for rank in host.ranks if host.cache}


def summarise(found: Iterable[Hardware], known: Mapping[int, int] | None = None) -> dict[str, Any]:
    """`ranks`: each device's figures; `slow`: [{rank, share}], slow devices, worst first; `notes`.

    `known` is `caches`' of the report. UserError where a row lacks a size of its kind.
    """
    by_rank: dict[int, list[Hardware]] = defaultdict(list)
    for row in found:
        _check(row)
        by_rank[row.rank].append(row)
    ranks = [_device(rank, by_rank[rank], (known or {}).get(rank, 0)) for rank in sorted(by_rank)]
    return {"ranks": ranks, "slow": _slow(by_rank), "notes": _notes(ranks)}


def _check(row: Hardware) -> None:
    wanted = PROBES[row.bench].sizes if row.bench in PROBES else ()
    missing = [name for name in wanted if not row.shape.get(name)]
    if missing:
        raise UserError(
            f"report: {row.bench} {row.kind}: its shape has no {' and no '.join(missing)}; "
            "measure again"
        )


def _device(rank: int, rows: list[Hardware], cache: int) -> dict[str, Any]:
    benches = grouped(rows, "bench")
    device: dict[str, Any] = {"rank": rank, "cache": cache}
    for name in PROBES:
        mine = benches.get(name)
        device[name] = PROBES[name].summarise(mine, device) if mine else {}
    return {**device, "ridge": ridge(device)}


def _notes(ranks: list[dict[str, Any]]) -> list[str]:
    """What is missing for the memory's own rate."""
    small = [r["cache"] for r in ranks if any(m["rate"] is None for m in r["memory"].values())]
    if not small:
        return []
    wanted = label(MEMORY_SETS * max(small))
    return [
        f"memory: no working set of {MEMORY_SETS} times the last cache ({label(max(small))}), so "
        f"the memory's own rate is not known; measure up to max_bytes {wanted}"
    ]


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
