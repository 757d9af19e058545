"""Dense matrix products, [M, K] x [N, K]^T as in a linear layer."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..schema import Hardware
from .config import HardwareConfig
from .probe import DTYPES, Call, Curve, Probe, ProbeKind, flops, grouped, rotate, rotations

NEAR_PEAK = 0.9
FLOPS_CURVE = Curve("gemm", "matrix products", "count", "FLOPs of one call", flops)
"""FLOP/s over the FLOPs of one call: where a product is large enough."""


def probes(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    """Every shape of the sweep in every dtype, then the model's products in the first."""
    for dtype in config.gemm_dtypes:
        for shape in config.gemms(device):
            yield _probe("sweep", dtype, shape, device)
    for name, m, n, k in config.model_shapes:
        yield _probe(name, config.gemm_dtypes[0], (m, n, k), device)


def _probe(kind: str, dtype: str, shape: tuple[int, ...], device: torch.device) -> Probe:
    m, n, k = shape
    operands = DTYPES[dtype].itemsize * (m * k + n * k + m * n)
    sets = rotations(operands, device)
    return Probe(
        bench="gemm",
        kind=kind,
        dtype=dtype,
        shape={"M": m, "N": n, "K": k},
        bytes=sets * operands,
        work=2.0 * m * n * k,
        unit="FLOP/s",
        make=lambda: rotate([_product(m, n, k, dtype, device) for _ in range(sets)]),
    )


def _product(m: int, n: int, k: int, dtype: str, device: torch.device) -> Call:
    a, b = (normal(rows, k, dtype, device) for rows in (m, n))
    b, out = b.T, torch.empty(m, n, dtype=DTYPES[dtype], device=device)
    return lambda: torch.mm(a, b, out=out)


def normal(rows: int, columns: int, dtype: str, device: torch.device) -> torch.Tensor:
    """[rows, columns] drawn anew."""
    # Zeros would draw less power, and a GPU would clock higher than in training.
    values = torch.empty(rows, columns, dtype=DTYPES[dtype], device=device)
    return values.normal_()


def summarise(rows: list[Hardware], found: Mapping[str, Any]) -> dict[str, Any]:
    """By dtype `peak` and its shape; `near_peak`: the product with the fewest FLOPs that reaches
    0.9 of it (the paper's figure is about 200 GFLOP)."""
    return {dtype: _peak(group) for dtype, group in grouped(rows, "dtype").items()}


def _peak(rows: list[Hardware]) -> dict[str, Any]:
    best = max(rows, key=lambda r: r.rate)
    near = min((r for r in rows if r.rate >= NEAR_PEAK * best.rate), key=flops)
    return {
        "peak": best.rate,
        "shape": best.shape,
        "near_peak": {"flops": flops(near), "shape": near.shape},
    }


KIND = ProbeKind(probes, ("M", "N", "K"), summarise, FLOPS_CURVE)
