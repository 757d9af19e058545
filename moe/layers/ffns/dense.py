"""The dense feed-forward layer."""

import torch
from torch import nn
from torch.nn import functional as F

from ...config import ModelConfig
from ...grid import Groups
from .base import FFNOutput


class SwiGLU(nn.Module):
    """`down(silu(gate x) * up x)` (arXiv 2002.05202), no biases."""

    def __init__(self, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(2 * ffn_size, hidden_size))
        self.gate_up.matrix_rows = ffn_size  # type: ignore[attr-defined]
        self.down = nn.Parameter(torch.empty(hidden_size, ffn_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        gate, up = F.linear(x, self.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down)


class DenseFFN(nn.Module):
    """A SwiGLU layer behind the registry's interface."""

    def __init__(self, config: ModelConfig, groups: Groups) -> None:
        super().__init__()
        self.mlp = SwiGLU(config.hidden_size, config.ffn_size)

    def forward(self, x: torch.Tensor) -> FFNOutput:
        """[B, S, D] to [B, S, D]."""
        return FFNOutput(self.mlp(x), x.new_zeros((), dtype=torch.float32), None)
