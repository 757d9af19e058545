"""Muon: momentum orthogonalised by Newton-Schulz steps."""

from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic of Keller Jordan's Muon: fast to about 1, not exact."""


def newton_schulz(m: torch.Tensor, steps: int) -> torch.Tensor:
    """Approximate U V^T of each matrix of `m` [n, r, c] = U S V^T (arXiv 2511.17127).

    `X <- aX + (bA + cA^2) X` with `A = X X^T`, in bf16 on a GPU and fp32 on a CPU (bf16 products
    are slow there). Works on the wide side, so A is min(r, c) square.
    """
    a, b, c = COEFFICIENTS
    x = m.bfloat16() if m.is_cuda else m.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(m.dtype)


class Muon(torch.optim.Optimizer):
    """`m = mu m + g; w -= lr (0.2 sqrt(max(r, c)) NS(m) + wd w)` for stacks [n, r, c].

    The factor gives Muon's update AdamW's usual RMS, so one rate and decay fit both
    (arXiv 2502.16982, section 2.2).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float,
        ns_steps: int,
        weight_decay: float,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "ns_steps": ns_steps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        m = state["momentum"].mul_(group["momentum"]).add_(p.grad)
        scale = 0.2 * max(p.shape[-2:]) ** 0.5
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(newton_schulz(m, group["ns_steps"]), alpha=-group["lr"] * scale)
