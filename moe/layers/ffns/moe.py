"""The mixture-of-experts feed-forward layer: dropless, expert parallel."""

import torch
from torch import nn

from ....kernels.grouped_mlp import grouped_mlp, moe_mlp
from ...config import ModelConfig
from ...grid import Groups
from ..dispatch import Plan, combine, dispatch, plan
from ..routers.top_k import Router
from .base import FFNOutput
from .dense import SwiGLU


class Experts(nn.Module):
    """This rank's experts, stacked: `gate_up` [E_local, 2F, D], `down` [E_local, D, F].

    `first_expert` on each parameter is the global id of the first one; it marks the parameter as
    an expert's, for the engines and the canonical names.
    """

    def __init__(self, config: ModelConfig, groups: Groups) -> None:
        super().__init__()
        moe, ep = config.moe, groups.ep
        local = moe.num_experts // ep.size
        self.gate_up = nn.Parameter(torch.empty(local, 2 * moe.expert_size, config.hidden_size))
        self.down = nn.Parameter(torch.empty(local, config.hidden_size, moe.expert_size))
        for parameter in (self.gate_up, self.down):
            parameter.first_expert = ep.rank * local  # type: ignore[attr-defined]
        self.gate_up.matrix_rows = moe.expert_size  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor, weights: torch.Tensor, path: Plan) -> torch.Tensor:
        """`x` [T, D] through the experts along `path`, added by `weights` [T, k]: [T, D]."""
        experts = self.gate_up, self.down
        if path.exchange is None:
            return moe_mlp(x, weights, *experts, path.order, path.inverse, path.offsets)
        rows = dispatch(x, path, path.exchange, weights.shape[1])
        rows = grouped_mlp(rows, *experts, path.offsets)
        return combine(rows, path, path.exchange, weights)


class MoEFFN(nn.Module):
    """Router, dispatch, experts, combine, and an optional shared expert."""

    def __init__(self, config: ModelConfig, groups: Groups) -> None:
        super().__init__()
        self.groups = groups
        self.router = Router(config.hidden_size, config.moe, groups)
        self.experts = Experts(config, groups)
        shared = config.moe.shared_expert_size
        self.shared = SwiGLU(config.hidden_size, shared) if shared else None

    def forward(self, x: torch.Tensor) -> FFNOutput:
        """[B, S, D] to [B, S, D]; collective over the expert-parallel group."""
        routing = self.router(x)
        path = plan(routing.experts, routing.counts, self.groups.ep)
        y = self.experts(x.flatten(0, 1), routing.weights, path).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)
        return FFNOutput(y, routing.aux, routing.counts)
