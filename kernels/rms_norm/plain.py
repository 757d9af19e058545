"""RMSNorm after a residual addition, in plain torch; torch.compile fuses these itself."""

import torch
from torch.nn import functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of `x` [..., D] with `weight` [D], in the dtype of `x`."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + y, its RMSNorm), both [..., D] as `x` and `y` of one dtype; `weight` [D]."""
    total = x + y
    return total, rms_norm(total, weight, eps)


def scaled_add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rms_norm.scaled_add_rms_norm`: `x`, `y` [..., D], `scales` [4, D], `weight` [D]; the sum in
    the dtype of `x`, its norm in that of `y`, fp32 inside."""
    a1, b1, a2, b2 = scales.float()
    total = ((a1 * x.float() + b1) + (a2 * y.float() + b2)).to(x.dtype)
    return total, rms_norm(total.float(), weight.float(), eps).to(y.dtype)
