"""Muon: momentum orthogonalised by Newton-Schulz steps."""

from collections.abc import Iterable
from typing import Any

import torch

from ...kernels.newton_schulz import newton_schulz


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
