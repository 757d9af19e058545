"""Linear gate, softmax or sigmoid scores, top-k, and the balancing losses."""

from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from ...section import Section
from ...spec import Constant, Spec, Specs, matrix
from ...stages import waiting
from ..base import Carry, Dims, Flow
from ..costs import Costs, Product
from .base import Router, RouterConfig, Routing


class Balancing(Section):
    """Scores and balance of a top-k router."""

    score: Literal["softmax", "sigmoid"] = "softmax"
    """Softmax scores (Switch, OLMoE) or sigmoid scores (DeepSeek-V3)."""
    normalize_top_k: bool = True
    """Scale the chosen weights to sum to one for each token."""
    load_balance_weight: Annotated[float, Field(ge=0)] = 0.01
    balance_scope: Literal["sequence", "batch"] = "sequence"
    """Balance each sequence (DeepSeek-V3; the same for every layout), or the micro-batch of all
    data-parallel ranks."""
    z_weight: Annotated[float, Field(ge=0)] = 1e-3
    bias_update_rate: Annotated[float, Field(ge=0)] = 0.0
    """Step of the loss-free balancing bias (arXiv 2408.15664; 0: off)."""


class TopKConfig(RouterConfig, Balancing):
    """The options of `router: {kind: top_k}`."""

    kind: Literal["top_k"] = "top_k"

    @model_validator(mode="after")
    def _check(self) -> "TopKConfig":
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k is {self.top_k}, above num_experts {self.num_experts}: lower top_k"
            )
        return self


class TopK(Router):
    """Linear gate in fp32, softmax or sigmoid scores, top-k by score plus balancing bias.

    The bias (arXiv 2408.15664) only moves the choice, never the weights; `after_update` moves it
    by a fixed step towards balance after every optimizer step.
    """

    Config = TopKConfig
    config: TopKConfig
    weight: nn.Parameter
    bias: torch.Tensor

    @classmethod
    def specs(cls, config: TopKConfig, dims: Dims) -> Specs:
        """The gate, and the bias as a buffer."""
        return {
            "weight": matrix(config.num_experts, dims.hidden_size, dims.init_std),
            "bias": Spec((config.num_experts,), Constant(0.0), buffer=True),
        }

    @classmethod
    def costs(cls, config: Any, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """The gate's product and its fp32 copy of the input."""
        gate = Product("router", tokens, config.num_experts, dims.hidden_size)
        return Costs((gate,), moved=4 * tokens * dims.hidden_size)

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Routing:
        """Route `x` [B, S, D]."""
        logits = F.linear(x.float(), self.weight.float())
        scores = logits.softmax(-1) if self.config.score == "softmax" else logits.sigmoid()
        experts = (scores.detach() + self.bias).topk(self.config.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.config.normalize_top_k:
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        counts = self._count(experts)
        aux = self._balance(scores, counts) + self._z_loss(logits)
        return Routing(experts.flatten(0, 1), weights.flatten(0, 1), counts.sum(0), aux)

    def _count(self, experts: torch.Tensor) -> torch.Tensor:
        """Tokens [B, E] that each sequence sends to each expert; `experts` [B, S, k]."""
        # One-hot by comparison instead of bincount: no host synchronisation, deterministic.
        ids = torch.arange(self.config.num_experts, device=experts.device)
        return (experts.flatten(1).unsqueeze(-1) == ids).sum(1)

    def _balance(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Sum over sequences of E * sum_i f_i P_i (Switch, eq. 4; DeepSeek-V3, eq. 17-20).

        `scores` [B, S, E], `counts` [B, E]. f_i is the share of the chosen slots that expert i
        got, P_i its mean normalised score. Zero where no gradient is asked for: an evaluation has
        no use for it.
        """
        if self.config.load_balance_weight == 0 or not torch.is_grad_enabled():
            return scores.new_zeros(())
        share = scores / scores.sum(-1, keepdim=True)
        counted = counts.float()
        if self.config.balance_scope == "batch":
            total = counted.sum(0)
            with waiting():
                dist.all_reduce(total, group=self.grid.replicas.group)
            counted = total.expand_as(counted)
        fraction = counted / counted.sum(-1, keepdim=True)
        loss = self.config.num_experts * (fraction * share.mean(1)).sum()
        return self.config.load_balance_weight * loss

    def _z_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Sum over sequences of mean(logsumexp(logits)^2) (ST-MoE, eq. 5)."""
        return self.config.z_weight * logits.logsumexp(-1).square().mean(1).sum()

    @torch.no_grad()
    def after_update(self, loads: torch.Tensor) -> None:
        """Step the bias towards balance; `loads` [E] are the global batch's."""
        if self.config.bias_update_rate:
            error = loads.float().mean() - loads.float()
            self.bias += self.config.bias_update_rate * error.sign()
