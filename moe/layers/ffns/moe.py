"""The mixture-of-experts feed-forward layer: dropless, expert parallel."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import SerializeAsAny, model_validator
from torch import nn

from ....kernels.grouped_mlp import grouped_mlp, moe_mlp
from ...grid import Grid
from ...section import NonNegative, Positive
from ...spec import Specs, under
from ..base import Carry, Dims, Flow, Layer, LayerConfig, Output, choice, declare, filled
from ..costs import Costs, ExpertLayer
from ..dispatch import Route, combine, dispatch, plan
from ..routers import ROUTERS
from ..routers.base import Router, RouterConfig
from ..routers.top_k import Balancing
from .dense import SwiGLU


class MoEConfig(LayerConfig, Balancing):
    """The mixture of experts of one feed-forward layer."""

    kind: Literal["moe"] = "moe"
    num_experts: Positive = 8
    top_k: Positive = 2
    expert_size: Positive = 512
    """Intermediate width of each routed expert."""
    shared_expert_size: NonNegative = 0
    """Intermediate width of the always-active shared expert (0: none)."""
    router: Annotated[SerializeAsAny[LayerConfig], choice(ROUTERS)] | None = None
    """Another router than `top_k` with the scores and balance above, as `{kind: ..., ...}`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_router(cls, written: Any) -> Any:
        if not isinstance(written, dict) or written.get("router") is None:
            return written
        return {**written, "router": filled(written["router"], ROUTERS, (written, cls))}

    @model_validator(mode="after")
    def _check(self) -> "MoEConfig":
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k is {self.top_k}, above num_experts {self.num_experts}: lower top_k"
            )
        if self.expert_size % 8:
            raise ValueError(
                f"expert_size is {self.expert_size}: grouped GEMM needs a multiple of 8 (16-byte "
                "rows in bf16)"
            )
        number = self.routing.num_experts
        if number != self.num_experts:
            raise ValueError(
                f"router.num_experts is {number}, but num_experts {self.num_experts}: drop the "
                "router's"
            )
        return self

    @property
    def routing(self) -> RouterConfig:
        """The router's options; without one those of `top_k`, taken from here."""
        router: Any = self.router
        if router is None:
            values = filled("top_k", ROUTERS, (self, type(self)))
            router = ROUTERS["top_k"].Config.model_validate(values)
        return router


class Experts(nn.Module):
    """This rank's experts, stacked: `gate_up` [E_local, 2F, D], `down` [E_local, D, F]."""

    gate_up: nn.Parameter
    down: nn.Parameter

    @staticmethod
    def specs(config: MoEConfig, dims: Dims) -> Specs:
        """Those of a SwiGLU, stacked."""
        width, number = config.expert_size, config.num_experts
        stacked = SwiGLU.specs(width, dims, "moe.expert_size", number)
        return {name: replace(spec, used=config.top_k) for name, spec in stacked.items()}

    def __init__(self, config: MoEConfig, dims: Dims, grid: Grid) -> None:
        super().__init__()
        declare(self, self.specs(config, dims), grid)

    def forward(self, x: torch.Tensor, weights: torch.Tensor, path: Route) -> torch.Tensor:
        """`x` [T, D] through the experts along `path`, added by `weights` [T, k]: [T, D]."""
        experts = self.gate_up, self.down
        if path.exchange is None:
            return moe_mlp(x, weights, *experts, path.order, path.inverse, path.offsets)
        rows = dispatch(x, path, path.exchange, weights.shape[1])
        rows = grouped_mlp(rows, *experts, path.offsets)
        return combine(rows, path, path.exchange, weights)


class MoE(Layer):
    """Router, dispatch, experts, combine, and an optional shared expert."""

    Config = MoEConfig

    @classmethod
    def specs(cls, config: MoEConfig, dims: Dims) -> Specs:
        """Of the router, the experts and the shared expert."""
        routing, shared = config.routing, config.shared_expert_size
        found = under("router", ROUTERS[routing.kind].specs(routing, dims))
        found |= under("experts", Experts.specs(config, dims))
        if shared:
            found |= under("shared", SwiGLU.specs(shared, dims, "moe.shared_expert_size"))
        return found

    @classmethod
    def costs(cls, config: MoEConfig, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """The parts'; tokens are sorted (1 + k rows) and combined (k + 1), and each of a token's
        experts leaves four widths and two rows for the backward pass."""
        routing, d = config.routing, dims.hidden_size
        rows, width, k = tokens * config.top_k, config.expert_size, config.top_k
        routed = ExpertLayer(rows, d, width, config.num_experts // ep)
        found = ROUTERS[routing.kind].costs(routing, dims, tokens, length, ep)
        found += Costs(
            experts=(routed,), moved=2 * (k + 1) * tokens * d, saved=rows * (4 * width + 2 * d)
        )
        if config.shared_expert_size:
            found += SwiGLU.costs("shared", config.shared_expert_size, dims, tokens)
        return found

    @classmethod
    def expert_count(cls, config: MoEConfig) -> int:
        """How many experts it routes to."""
        return config.num_experts

    @classmethod
    def counts_batch(cls, config: MoEConfig) -> bool:
        """Whether the router does."""
        routing = config.routing
        return ROUTERS[routing.kind].counts_batch(routing)

    @classmethod
    def by_depth(cls, config: MoEConfig) -> bool:
        """Whether the router does."""
        routing = config.routing
        return ROUTERS[routing.kind].by_depth(routing)

    def __init__(self, config: MoEConfig, dims: Dims, grid: Grid) -> None:
        super().__init__(config, dims, grid)
        routing, shared = config.routing, config.shared_expert_size
        self.router: Router = ROUTERS[routing.kind](routing, dims, grid)
        self.experts = Experts(config, dims, grid)
        self.shared = SwiGLU(shared, dims, grid) if shared else None

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Output:
        """[B, S, D] to [B, S, D]; collective over the expert-parallel group."""
        routing = self.router(x, carry, flow)
        path = plan(routing.experts, routing.loads, self.grid.ep)
        y = self.experts(x.flatten(0, 1), routing.weights, path).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)
        return Output(y, routing.aux, routing.loads, routing.carry)

    def after_update(self, loads: torch.Tensor) -> None:
        """Let the router move its biases; `loads` [E] are the global batch's."""
        self.router.after_update(loads)
