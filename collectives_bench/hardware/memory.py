"""Memory bandwidth over buffer sizes: STREAM's copy, scale and triad (McCalpin), read and write.

Sets of buffers that fit a cache show the cache: the memory's own rate is that of a set several
times the last cache. Bytes are those that the operation names, as in STREAM: what a cache fetches
before a write is not counted.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..schema import Hardware
from .config import MEMORY_SETS, HardwareConfig
from .probe import Call, Curve, Probe, ProbeKind, grouped

BUFFERS = {"copy": 2, "scale": 2, "triad": 3, "read": 1, "write": 1}


def probes(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    """fp32; `bytes` of one buffer, `moved` by one call over all of them."""
    for kind in config.kinds:
        for size in config.sizes(device):
            yield _probe(kind, max(size // 4, 1), device)


def _probe(kind: str, count: int, device: torch.device) -> Probe:
    moved = BUFFERS[kind] * 4 * count
    return Probe(
        bench="memory",
        kind=kind,
        dtype="fp32",
        shape={"bytes": 4 * count, "moved": moved},
        bytes=moved,
        work=moved,
        unit="B/s",
        make=lambda: _make(kind, count, device),
    )


def _make(kind: str, count: int, device: torch.device) -> Call:
    # Filled, not empty: on a CPU only a written page is memory.
    a, *rest = (torch.ones(count, device=device) for _ in range(BUFFERS[kind]))
    if kind == "write":
        return lambda: a.fill_(2.0)
    if kind == "read":
        total = torch.empty((), device=device)
        return lambda: torch.sum(a, dim=0, out=total)
    if kind == "copy":
        return lambda: rest[0].copy_(a)
    if kind == "scale":
        return lambda: torch.mul(a, 3.0, out=rest[0])
    return lambda: torch.add(a, rest[0], alpha=3.0, out=rest[1])


def place(row: Hardware, cache: int) -> str:
    """Where a row's working set lies beside a last cache of `cache` bytes: `cache` (it fits),
    `memory` (MEMORY_SETS times it, or more), `between`; empty where the cache is not known."""
    if not cache:
        return ""
    moved = row.shape["moved"]
    if moved <= cache:
        return "cache"
    return "memory" if moved >= MEMORY_SETS * cache else "between"


def summarise(rows: list[Hardware], found: Mapping[str, Any]) -> dict[str, Any]:
    """By access `sets`: bytes, rate and place of each working set, and `rate`, the memory's: that
    of the largest set (None: the cache is known, and none is MEMORY_SETS times it)."""
    return {kind: _by_set(group, found["cache"]) for kind, group in grouped(rows, "kind").items()}


def _by_set(rows: list[Hardware], cache: int) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: row.shape["moved"])
    sets = [
        {"bytes": row.shape["moved"], "rate": row.rate, "place": place(row, cache)} for row in rows
    ]
    itself = sets[-1]["place"] in ("memory", "")
    return {"rate": sets[-1]["rate"] if itself else None, "sets": sets}


_OVER_SETS = Curve(
    "memory",
    "memory bandwidth over the working set",
    "bytes",
    "working set",
    lambda row: float(row.shape["moved"]),
)
KIND = ProbeKind(probes, ("bytes", "moved"), summarise, _OVER_SETS)
