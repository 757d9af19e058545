"""Dense matrix products, [M, K] x [N, K]^T as in a linear layer, and grouped SwiGLU experts."""

from collections.abc import Iterator

import torch

from ...kernels.grouped_mlp import grouped_mlp
from .case import DTYPES, Call, Probe, rotate, rotations
from .config import HardwareConfig


def cases(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    """Every shape of the sweep in every dtype, then the model's products in the first."""
    for dtype in config.gemm_dtypes:
        for shape in config.gemms(device):
            yield _case("sweep", dtype, shape, device)
    for name, m, n, k in config.model_shapes:
        yield _case(name, config.gemm_dtypes[0], (m, n, k), device)


def _case(kind: str, dtype: str, shape: tuple[int, ...], device: torch.device) -> Probe:
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
    a, b = (_normal(rows, k, dtype, device) for rows in (m, n))
    b, out = b.T, torch.empty(m, n, dtype=DTYPES[dtype], device=device)
    return lambda: torch.mm(a, b, out=out)


def _normal(rows: int, columns: int, dtype: str, device: torch.device) -> torch.Tensor:
    # Zeros would draw less power, and a GPU would clock higher than in training.
    values = torch.empty(rows, columns, dtype=DTYPES[dtype], device=device)
    return values.normal_()


def expert_cases(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    """Each experts' shape, forward and with its backward pass (3 x the FLOPs), in the first dtype;
    by the form that training runs (Triton on a GPU, torch elsewhere)."""
    dtype = config.gemm_dtypes[0]
    for shape in config.experts(device):
        yield _experts("forward", dtype, shape, device)
        yield _experts("forward+backward", dtype, shape, device)


def _experts(kind: str, dtype: str, shape: tuple[int, ...], device: torch.device) -> Probe:
    rows, hidden, width, experts = shape
    weights, activations = 3 * experts * hidden * width, rows * (2 * hidden + 3 * width)
    backward = kind != "forward"
    return Probe(
        bench="experts",
        kind=kind,
        dtype=dtype,
        shape={"rows": rows, "hidden": hidden, "ffn": width, "experts": experts},
        bytes=DTYPES[dtype].itemsize * (weights + activations) * (3 if backward else 1),
        work=6.0 * rows * hidden * width * (3 if backward else 1),
        unit="FLOP/s",
        make=lambda: _layer(shape, dtype, device, backward),
    )


def _layer(shape: tuple[int, ...], dtype: str, device: torch.device, backward: bool) -> Call:
    rows, hidden, width, experts = shape
    x = _normal(rows, hidden, dtype, device)
    gate_up = _normal(experts * 2 * width, hidden, dtype, device).view(experts, 2 * width, hidden)
    down = _normal(experts * hidden, width, dtype, device).view(experts, hidden, width)
    ends = [rows * (e + 1) // experts for e in range(experts)]
    offsets = torch.tensor(ends, dtype=torch.int32, device=device)
    tensors = [t.mul_(0.02).requires_grad_(backward) for t in (x, gate_up, down)]
    if not backward:
        return lambda: grouped_mlp(x, gate_up, down, offsets)
    grad = torch.ones_like(x)
    return lambda: torch.autograd.grad(grouped_mlp(x, gate_up, down, offsets), tensors, grad)
