"""A grouped SwiGLU layer of experts, by the form that training runs."""

from collections.abc import Iterator

import torch

from ...kernels.grouped_mlp import grouped_mlp
from .config import HardwareConfig
from .gemm import FLOPS_CURVE, normal
from .probe import DTYPES, Call, Probe, ProbeKind, best_rates


def probes(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
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
    x = normal(rows, hidden, dtype, device)
    gate_up = normal(experts * 2 * width, hidden, dtype, device).view(experts, 2 * width, hidden)
    down = normal(experts * hidden, width, dtype, device).view(experts, hidden, width)
    ends = [rows * (e + 1) // experts for e in range(experts)]
    offsets = torch.tensor(ends, dtype=torch.int32, device=device)
    tensors = [t.mul_(0.02).requires_grad_(backward) for t in (x, gate_up, down)]
    if not backward:
        return lambda: grouped_mlp(x, gate_up, down, offsets)
    grad = torch.ones_like(x)
    return lambda: torch.autograd.grad(grouped_mlp(x, gate_up, down, offsets), tensors, grad)


KIND = ProbeKind(probes, ("rows", "hidden", "ffn", "experts"), best_rates, FLOPS_CURVE)
