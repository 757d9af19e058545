"""Top-k routers and their balancing losses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from ...config import MoEConfig
from ...grid import Groups
from ...stages import waiting


@dataclass(frozen=True)
class Routing:
    """Where each of T tokens goes.

    `experts` [T, k] int64 and `weights` [T, k] fp32; `counts` [E] int64, the tokens each expert
    gets from this rank; `aux` scalar fp32, the weighted balancing losses summed over sequences.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    aux: torch.Tensor


class Router(nn.Module):
    """Linear gate in fp32, softmax or sigmoid scores, top-k by score plus balancing bias.

    The bias (arXiv 2408.15664) only moves the choice, never the weights; `update_bias` moves it
    by a fixed step towards balance after every optimizer step.
    """

    bias: torch.Tensor

    def __init__(self, hidden_size: int, config: MoEConfig, groups: Groups) -> None:
        super().__init__()
        self.config, self.groups = config, groups
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        self.register_buffer("bias", torch.zeros(config.num_experts))

    def _apply(self, fn: Callable, recurse: bool = True) -> "Router":
        bias = self.bias
        super()._apply(fn, recurse)
        # A cast of the model to bf16 must not coarsen the bias: its steps are about 1e-3.
        self.bias = bias.to(self.bias.device)
        return self

    def forward(self, x: torch.Tensor) -> Routing:
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
        # One-hot by comparison instead of bincount: no host synchronisation, deterministic.
        ids = torch.arange(self.config.num_experts, device=experts.device)
        return (experts.flatten(1).unsqueeze(-1) == ids).sum(1)

    def _balance(self, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Sum over sequences of E * sum_i f_i P_i (Switch, eq. 4; DeepSeek-V3, eq. 17-20).

        f_i is the share of the chosen slots that expert i got, P_i its mean normalised score. Zero
        where no gradient is asked for: an evaluation has no use for it.
        """
        if self.config.load_balance_weight == 0 or not torch.is_grad_enabled():
            return scores.new_zeros(())
        share = scores / scores.sum(-1, keepdim=True)
        counted = counts.float()
        if self.config.balance_scope == "batch":
            total = counted.sum(0)
            with waiting():
                dist.all_reduce(total, group=self.groups.dp.group)
            counted = total.expand_as(counted)
        fraction = counted / counted.sum(-1, keepdim=True)
        loss = self.config.num_experts * (fraction * share.mean(1)).sum()
        return self.config.load_balance_weight * loss

    def _z_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Sum over sequences of mean(logsumexp(logits)^2) (ST-MoE, eq. 5)."""
        return self.config.z_weight * logits.logsumexp(-1).square().mean(1).sum()

    @torch.no_grad()
    def update_bias(self, counts: torch.Tensor) -> None:
        """Step the bias towards balance; `counts` [E] are the global batch's."""
        error = counts.float().mean() - counts.float()
        self.bias += self.config.bias_update_rate * error.sign()
