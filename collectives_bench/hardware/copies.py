"""Copies between host and device, from pinned and from pageable host memory."""

from collections.abc import Iterator

import torch

from .config import HardwareConfig
from .probe import Call, Curve, Probe, ProbeKind, best_rates


def probes(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    """Both directions over sizes; none on a CPU, which has no other memory."""
    if device.type == "cpu":
        return
    for way in ("h2d", "d2h"):
        for place in ("pinned", "pageable"):
            for size in config.sizes(device, host=True):
                yield _probe(way, place, size, device)


def _probe(way: str, place: str, size: int, device: torch.device) -> Probe:
    return Probe(
        bench="copy",
        kind=f"{way} {place}",
        dtype="bytes",
        shape={"bytes": size},
        bytes=size,
        work=size,
        unit="B/s",
        make=lambda: _make(way, place, size, device),
    )


def _make(way: str, place: str, size: int, device: torch.device) -> Call:
    host = torch.ones(size, dtype=torch.uint8, pin_memory=place == "pinned")
    ours = torch.ones(size, dtype=torch.uint8, device=device)
    to, source = (ours, host) if way == "h2d" else (host, ours)
    return lambda: to.copy_(source, non_blocking=True)


_OVER_SIZE = Curve(
    "copy",
    "copies between host and device",
    "bytes",
    "size",
    lambda row: float(row.shape["bytes"]),
)
KIND = ProbeKind(probes, ("bytes",), best_rates, _OVER_SIZE)
