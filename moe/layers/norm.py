"""Root-mean-square norm."""

import torch
from torch import nn

from ...kernels.rms_norm import add_rms_norm, rms_norm
from ..spec import Specs, vector
from .base import Dims


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the hidden size (arXiv 1910.07467)."""

    @staticmethod
    def specs(dims: Dims) -> Specs:
        """The weight, one at the start."""
        return {"weight": vector(dims.hidden_size, 1.0)}

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dims.hidden_size))
        self.eps = dims.norm_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis of `x` [..., D]."""
        return rms_norm(x, self.weight, self.eps)

    def after_add(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + y, its norm), both [..., D]."""
        return add_rms_norm(x, y, self.weight, self.eps)
