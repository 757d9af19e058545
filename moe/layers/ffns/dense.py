"""The dense feed-forward layer."""

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from ...grid import Grid
from ...section import Positive
from ...spec import Cut, Specs, matrix, under
from ..base import Carry, Dims, Flow, Layer, LayerConfig, Output, declare
from ..costs import Costs, Product


class SwiGLU(nn.Module):
    """`down(silu(gate x) * up x)` (arXiv 2002.05202), no biases."""

    gate_up: nn.Parameter
    down: nn.Parameter

    @staticmethod
    def specs(width: int, dims: Dims, field: str, experts: int = 0) -> Specs:
        """`gate_up` [2F, D] and `down` [D, F] for `width` F, which the config calls `field`; of
        each of `experts` where they are stacked."""
        rows = Cut(0, blocks=2, units=width, field=field)
        columns = Cut(1, units=width, field=field)
        d, std = dims.hidden_size, dims.residual_std
        return {
            "gate_up": matrix(2 * width, d, dims.init_std, rows, matrices=2, experts=experts),
            "down": matrix(d, width, std, columns, experts=experts),
        }

    @staticmethod
    def costs(name: str, width: int, dims: Dims, tokens: int) -> Costs:
        """Both products; gate, up, the activation and its input stay for the backward pass."""
        d = dims.hidden_size
        products = (
            Product(f"{name} gate_up", tokens, 2 * width, d),
            Product(f"{name} down", tokens, d, width),
        )
        return Costs(products, saved=4 * tokens * width)

    def __init__(self, width: int, dims: Dims, grid: Grid) -> None:
        super().__init__()
        declare(self, self.specs(width, dims, ""), grid)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        gate, up = F.linear(x, self.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down)


class DenseConfig(LayerConfig):
    """The options of `ffn: {kind: dense}`."""

    kind: Literal["dense"] = "dense"
    ffn_size: Positive = 1024
    """Intermediate width."""


class Dense(Layer):
    """One SwiGLU that all tokens share."""

    Config = DenseConfig

    @classmethod
    def specs(cls, config: DenseConfig, dims: Dims) -> Specs:
        """Of the SwiGLU."""
        return under("mlp", SwiGLU.specs(config.ffn_size, dims, "ffn_size"))

    @classmethod
    def costs(cls, config: Any, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """The SwiGLU's, whose activation is read and written once (3 F)."""
        inner = Costs(moved=3 * tokens * config.ffn_size)
        return SwiGLU.costs("ffn", config.ffn_size, dims, tokens) + inner

    def __init__(self, config: DenseConfig, dims: Dims, grid: Grid) -> None:
        super().__init__(config, dims, grid)
        self.mlp = SwiGLU(config.ffn_size, dims, grid)

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Output:
        """[B, S, D] to [B, S, D]."""
        return Output(self.mlp(x))
