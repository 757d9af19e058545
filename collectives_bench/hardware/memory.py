"""Memory bandwidth over buffer sizes: STREAM's copy, scale and triad (McCalpin), read and write.

Buffers that fit a cache show the cache. Bytes are those that the operation names, as in STREAM:
what a cache fetches before a write is not counted.
"""

from collections.abc import Iterator

import torch

from .case import Call, Probe
from .config import HardwareConfig

BUFFERS = {"copy": 2, "scale": 2, "triad": 3, "read": 1, "write": 1}


def cases(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    """fp32; `bytes` of one buffer, `moved` by one call over all of them."""
    for kind in config.kinds:
        for size in config.sizes(device):
            yield _case(kind, max(size // 4, 1), device)


def _case(kind: str, count: int, device: torch.device) -> Probe:
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
