"""Causal attention with grouped queries over sequence length, by torch's own choice of kernel.

FLOPs are counted as FlashAttention's authors do (arXiv 2307.08691, section 4.1): 2 S^2 d a head
forward (half of the square), 2.5 times that backward. Bytes are q, k, v and the output once (and
their gradients), the least that any kernel moves.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from ..schema import Hardware
from .config import HardwareConfig
from .gemm import NEAR_PEAK
from .probe import DTYPES, Call, Curve, Probe, ProbeKind, flops, grouped
from .roofline import ridge

BACKWARD = 2.5


def probes(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    """One sequence of each length in the first dtype, forward and forward + backward."""
    for kind in ("forward", "forward+backward"):
        for length in config.lengths(device):
            yield _probe(kind, length, config, device)


def _probe(kind: str, length: int, config: HardwareConfig, device: torch.device) -> Probe:
    dtype, backward = config.gemm_dtypes[0], kind != "forward"
    heads, kv, width = config.heads, config.kv_heads, config.head_dim
    moved = DTYPES[dtype].itemsize * length * width * 2 * (heads + kv) * (3 if backward else 1)
    return Probe(
        bench="attention",
        kind=kind,
        dtype=dtype,
        shape={
            "batch": 1,
            "heads": heads,
            "kv_heads": kv,
            "seq": length,
            "head_dim": width,
            "bytes": moved,
        },
        # K and V may be repeated for every head; a CPU kernel holds scores in fp32 as well.
        bytes=moved * 4,
        work=2.0 * heads * length**2 * width * (1 + BACKWARD if backward else 1),
        unit="FLOP/s",
        make=lambda: _make(length, config, device, backward),
    )


def _make(length: int, config: HardwareConfig, device: torch.device, backward: bool) -> Call:
    dtype = DTYPES[config.gemm_dtypes[0]]

    def draw(heads: int) -> torch.Tensor:
        shape = 1, heads, length, config.head_dim
        return torch.randn(shape, dtype=dtype, device=device, requires_grad=backward)

    q, k, v = draw(config.heads), draw(config.kv_heads), draw(config.kv_heads)
    grouped = config.heads != config.kv_heads

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    if not backward:
        return forward
    grad = torch.ones_like(q)
    return lambda: torch.autograd.grad(forward(), (q, k, v), grad)


def summarise(rows: list[Hardware], found: Mapping[str, Any]) -> dict[str, Any]:
    """By direction the `peak`; `saturates`: the shortest sequence at 0.9 of it, from which it is
    bound by compute; `roofline`: the shortest whose FLOPs per byte pass the ridge, where a perfect
    kernel would be (None: none does, or no ridge is known)."""
    bend = ridge(found)
    return {kind: _curve(group, bend) for kind, group in grouped(rows, "kind").items()}


def _curve(rows: list[Hardware], bend: float | None) -> dict[str, Any]:
    rows = sorted(rows, key=lambda r: r.shape["seq"])
    peak = max(row.rate for row in rows)
    dense = (r.shape["seq"] for r in rows if bend and flops(r) >= bend * r.shape["bytes"])
    return {
        "peak": peak,
        "saturates": next(r.shape["seq"] for r in rows if r.rate >= NEAR_PEAK * peak),
        "roofline": next(dense, None),
    }


_OVER_LENGTH = Curve(
    "attention", "attention", "power", "sequence length", lambda row: float(row.shape["seq"])
)
KIND = ProbeKind(
    probes,
    ("seq", "bytes"),
    summarise,
    _OVER_LENGTH,
)
