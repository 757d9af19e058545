"""The pre-norm residual block."""

from typing import Any, Literal

import torch

from ...grid import Grid
from ...spec import Specs, under
from ..base import Carry, Dims, Flow, LayerConfig
from ..costs import Costs
from ..norm import RMSNorm
from .base import Block, BlockOutput, Kinds, ffn_specs, make_ffn, make_mixer, mixer_specs


class PreNormConfig(LayerConfig):
    """The options of `block: {kind: pre_norm}`: none."""

    kind: Literal["pre_norm"] = "pre_norm"


class PreNorm(Block):
    """`x + mixer(norm(x))`, then `x + ffn(norm(x))` (arXiv 2002.04745)."""

    Config = PreNormConfig

    @classmethod
    def specs(cls, config: Kinds, dims: Dims) -> Specs:
        """Two norms, the mixer and the feed-forward layer."""
        norm = RMSNorm.specs(dims)
        return {
            **under("mixer_norm", norm),
            **mixer_specs(config, dims),
            **under("ffn_norm", norm),
            **ffn_specs(config, dims),
        }

    @classmethod
    def own_costs(cls, config: Any, dims: Dims, tokens: int) -> Costs:
        """Two norms, the second with the residual (2 + 4 rows), and the second residual (3)."""
        rows = tokens * dims.hidden_size
        return Costs(moved=9 * rows, saved=6 * rows)

    def __init__(self, config: Kinds, dims: Dims, grid: Grid) -> None:
        super().__init__(config, dims, grid)
        self.mixer_norm = RMSNorm(dims)
        self.mixer = make_mixer(config, dims, grid)
        self.ffn_norm = RMSNorm(dims)
        self.ffn = make_ffn(config, dims, grid)

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> BlockOutput:
        """`x` [B, S, D] with what the layers before handed on."""
        mixed = self.mixer(self.mixer_norm(x), carry, flow)
        carry = carry | (mixed.carry or {})
        x, normed = self.ffn_norm.after_add(x, mixed.y)
        out = self.ffn(normed, carry, flow)
        return BlockOutput(
            x + out.y, carry | (out.carry or {}), total(x, mixed.aux, out.aux), out.loads
        )


def total(x: torch.Tensor, *losses: torch.Tensor | None) -> torch.Tensor:
    """The sum of the losses that there are, scalar fp32, on the device of `x`."""
    found = [loss for loss in losses if loss is not None]
    return sum(found[1:], found[0]) if found else x.new_zeros((), dtype=torch.float32)
