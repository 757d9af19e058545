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
    """Balance each sequence (DeepSeek-V3), or the global batch (arXiv 2501.11873), for which a step
    of several micro-batches first counts all of them in a forward pass of its own."""
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
    def by_depth(cls, config: TopKConfig) -> bool:
        """To find its loads among those of all layers."""
        return cls.counts_batch(config)

    @classmethod
    def counts_batch(cls, config: TopKConfig) -> bool:
        """Whether it balances over the global batch."""
        return config.balance_scope == "batch" and config.load_balance_weight > 0

    @classmethod
    def costs(cls, config: Any, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """The gate's product and its fp32 copy of the input."""
        gate = Product("router", tokens, config.num_experts, dims.hidden_size)
        return Costs((gate,), moved=4 * tokens * dims.hidden_size)

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Routing:
        """Route `x` [B, S, D]."""
        logits = F.linear(x.float(), self.weight.float())
        # Sums of scores may underflow (sigmoids of -90 are 0), sums of their logarithms not.
        softmax = self.config.score == "softmax"
        logs = logits.log_softmax(-1) if softmax else F.logsigmoid(logits)
        experts = (logs.detach().exp() + self.bias).topk(self.config.top_k, dim=-1).indices
        chosen = logs.gather(-1, experts)
        weights = chosen.softmax(-1) if self.config.normalize_top_k else chosen.exp()
        counts = self._count(experts)
        aux = self._balance(logs, counts, flow) + self._z_loss(logits)
        return Routing(experts.flatten(0, 1), weights.flatten(0, 1), counts.sum(0), aux)

    def _count(self, experts: torch.Tensor) -> torch.Tensor:
        """Tokens [B, E] that each sequence sends to each expert; `experts` [B, S, k]."""
        # One-hot by comparison instead of bincount: no host synchronisation, deterministic.
        ids = torch.arange(self.config.num_experts, device=experts.device)
        return (experts.flatten(1).unsqueeze(-1) == ids).sum(1)

    def _balance(self, logs: torch.Tensor, counts: torch.Tensor, flow: Flow) -> torch.Tensor:
        """Sum over sequences of E * sum_i f_i P_i (Switch, eq. 4; DeepSeek-V3, eq. 17-20).

        `logs` [B, S, E] of the scores, `counts` [B, E]. f_i is the share of the chosen slots that
        expert i got, P_i its mean normalised score. Zero where no gradient is asked for: an
        evaluation has no use for it.
        """
        if self.config.load_balance_weight == 0 or not torch.is_grad_enabled():
            return logs.new_zeros(())
        counted = counts.float()
        if self.config.balance_scope == "batch":
            counted = self._of_the_batch(counted, flow).expand_as(counted)
        fraction = counted / counted.sum(-1, keepdim=True)
        share = logs.softmax(-1).mean(1)
        return self.config.load_balance_weight * self.config.num_experts * (fraction * share).sum()

    def _of_the_batch(self, counts: torch.Tensor, flow: Flow) -> torch.Tensor:
        """Tokens [E] that the global batch sends to each expert, of which `counts` [B, E] are this
        micro-batch's: counted before, or, where it is the rank's only one, added up here."""
        known = flow.loads.get(self.dims.index)
        if known is not None:
            return known.float()
        total = counts.sum(0)
        with waiting():
            dist.all_reduce(total, group=self.grid.replicas.group)
        return total

    def _z_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Sum over sequences of mean(logsumexp(logits)^2) (ST-MoE, eq. 5)."""
        return self.config.z_weight * logits.logsumexp(-1).square().mean(1).sum()

    @torch.no_grad()
    def after_update(self, loads: torch.Tensor) -> None:
        """Step the bias towards balance; `loads` [E] are the global batch's."""
        if self.config.bias_update_rate:
            error = loads.float().mean() - loads.float()
            self.bias += self.config.bias_update_rate * error.sign()
