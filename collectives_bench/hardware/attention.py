"""Causal attention with grouped queries over sequence length, by torch's own choice of kernel.

FLOPs are counted as FlashAttention's authors do (arXiv 2307.08691, section 4.1): 2 S^2 d a head
forward (half of the square), 2.5 times that backward. Bytes are q, k, v and the output once (and
their gradients), the least that any kernel moves.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from .case import DTYPES, Call, Probe
from .config import HardwareConfig

BACKWARD = 2.5


def cases(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    """One sequence of each length in the first dtype, forward and forward + backward."""
    for kind in ("forward", "forward+backward"):
        for length in config.lengths(device):
            yield _case(kind, length, config, device)


def _case(kind: str, length: int, config: HardwareConfig, device: torch.device) -> Probe:
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
