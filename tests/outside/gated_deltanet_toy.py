"""A mixer from outside the package, in one file: Gated DeltaNet (arXiv 2412.06464), step by step.

It says everything of itself: shapes, initial values, update rules, cuts, costs. Slow on purpose.
"""

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from moelstrom.moe.layers.base import Carry, Dims, Flow, Layer, LayerConfig, Output
from moelstrom.moe.layers.costs import Costs, Product
from moelstrom.moe.section import Positive
from moelstrom.moe.spec import Cut, Normal, Spec, Specs, matrix, vector


def decay_rates(values: torch.Tensor, generator: torch.Generator) -> None:
    """Logarithms of rates drawn evenly from [1, 16], as Mamba-2 begins."""
    values.uniform_(1, 16, generator=generator).log_()


class ToyConfig(LayerConfig):
    """The options of `mixer: {kind: gated_deltanet_toy}`."""

    kind: Literal["gated_deltanet_toy"] = "gated_deltanet_toy"
    num_heads: Positive = 4
    head_dim: Positive = 64
    conv_size: Positive = 4


class GatedDeltaNetToy(Layer):
    """`S = a S (I - b k k^T) + b v k^T`, `o = S q`, with a short convolution and a gated norm."""

    Config = ToyConfig
    qkv: nn.Parameter
    conv: nn.Parameter
    gates: nn.Parameter
    rate: nn.Parameter
    bias: nn.Parameter
    norm: nn.Parameter
    o: nn.Parameter

    @classmethod
    def specs(cls, config: ToyConfig, dims: Dims) -> Specs:
        """Every parameter: only the projections are matrices, only they decay."""
        h, width, size = config.num_heads, config.num_heads * config.head_dim, dims.hidden_size
        heads = Cut(0, units=h, field="num_heads")
        thirds = Cut(0, blocks=3, units=h, field="num_heads")
        conv = Normal(1 / math.sqrt(config.conv_size))
        return {
            "qkv": matrix(3 * width, size, dims.init_std, thirds, matrices=3),
            "conv": Spec((3 * width, 1, config.conv_size), conv, cut=thirds),
            "gates": matrix(2 * h, size, dims.init_std, Cut(0, blocks=2, units=h, field="heads")),
            "rate": Spec((h,), decay_rates, cut=heads),
            "bias": Spec((h,), vector(h, -4.0).init, cut=heads),
            "norm": vector(config.head_dim, 1.0),
            "o": matrix(size, width, dims.residual_std, Cut(1, units=h, field="num_heads")),
        }

    @classmethod
    def costs(cls, config: Any, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """Projections, and 8 d^2 H a token for the state (arXiv 2507.06457, section 3)."""
        h, d = config.num_heads, config.head_dim
        products = (
            Product("qkv", tokens, 3 * h * d, dims.hidden_size),
            Product("gates", tokens, 2 * h, dims.hidden_size),
            Product("o", tokens, dims.hidden_size, h * d),
        )
        return Costs(
            products,
            mixing_flops=8.0 * tokens * h * d * d,
            moved=12 * tokens * h * d,
            saved=8 * tokens * h * d,
            state=h * d * d,
        )

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Output:
        """[B, S, D] to [B, S, D]; convolution and state begin anew with every document."""
        h, d = self.config.num_heads, self.config.head_dim
        rows = self._convolved(F.linear(x, self.qkv), flow.documents)
        q, k, v = (part.unflatten(-1, (h, d)) for part in rows.chunk(3, dim=-1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        rate, strength = F.linear(x, self.gates).chunk(2, dim=-1)
        keep = torch.exp(-self.rate.exp() * F.softplus(rate + self.bias))
        y = self._scan(q, k, v, keep, strength.sigmoid(), flow.documents)
        y = F.rms_norm(y, (d,), self.norm, self.dims.norm_eps)
        return Output(F.linear(y.flatten(2), self.o))

    def _convolved(self, x: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """Causal depthwise convolution of `x` [B, S, C] inside each document, then SiLU."""
        y = torch.zeros_like(x)
        for back in range(self.config.conv_size):
            moved = F.pad(x, (0, 0, back, 0))[:, : x.shape[1]]
            before = F.pad(documents, (back, 0), value=-1)[:, : x.shape[1]]
            inside = (before == documents).unsqueeze(-1)
            y = y + torch.where(inside, moved, 0) * self.conv[:, 0, -1 - back]
        return F.silu(y)

    def _scan(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        keep: torch.Tensor,
        strength: torch.Tensor,
        documents: torch.Tensor,
    ) -> torch.Tensor:
        """The recurrence over `q`, `k`, `v` [B, S, H, d] with gates [B, S, H]: [B, S, H, d]."""
        starts = documents != F.pad(documents, (1, 0), value=-1)[:, :-1]
        state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], q.shape[3])
        out = []
        for t in range(q.shape[1]):
            state = torch.where(starts[:, t, None, None, None], 0, state)
            state = keep[:, t, :, None, None] * state
            seen = torch.einsum("bhvk,bhk->bhv", state, k[:, t])
            change = strength[:, t, :, None] * (v[:, t] - seen)
            state = state + torch.einsum("bhv,bhk->bhvk", change, k[:, t])
            out.append(torch.einsum("bhvk,bhk->bhv", state, q[:, t]))
        return torch.stack(out, dim=1)
