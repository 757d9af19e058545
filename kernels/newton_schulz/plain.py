"""Newton-Schulz by torch's own products."""

import torch

from .coefficients import COEFFICIENTS


def newton_schulz(m: torch.Tensor, steps: int) -> torch.Tensor:
    """`newton_schulz.newton_schulz` of `m` [n, r, c], in the dtype of `m`; inside in bf16 on a GPU
    and fp32 on a CPU (bf16 is slow there)."""
    a, b, c = COEFFICIENTS
    x = m.bfloat16() if m.is_cuda else m.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(m.dtype)
