"""A router, a feed-forward layer, a block and an engine from outside the package."""

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from moelstrom.moe.engines.base import Engine
from moelstrom.moe.engines.native.rules import Native
from moelstrom.moe.engines.options import EngineOptions
from moelstrom.moe.grid import Grid
from moelstrom.moe.layers.base import Carry, Dims, Flow, Layer, LayerConfig, Output
from moelstrom.moe.layers.blocks.base import (
    Block,
    BlockOutput,
    Kinds,
    ffn_specs,
    make_ffn,
    make_mixer,
    mixer_specs,
)
from moelstrom.moe.layers.blocks.pre_norm import total
from moelstrom.moe.layers.costs import Costs, Product
from moelstrom.moe.layers.norm import RMSNorm
from moelstrom.moe.layers.routers.base import Router, RouterConfig, Routing
from moelstrom.moe.section import Positive
from moelstrom.moe.spec import Cut, Specs, matrix, under


class DeepRouterConfig(RouterConfig):
    """The options of `router: {kind: deep_toy}`."""

    kind: Literal["deep_toy"] = "deep_toy"
    width: Positive = 8


class DeepRouter(Router):
    """Scores from a narrow state that the layers' routers hand on over depth."""

    Config = DeepRouterConfig
    down: nn.Parameter
    up: nn.Parameter

    @classmethod
    def specs(cls, config: DeepRouterConfig, dims: Dims) -> Specs:
        """Two projections."""
        return {
            "down": matrix(config.width, dims.hidden_size, dims.init_std),
            "up": matrix(config.num_experts, config.width, 1.0),
        }

    @classmethod
    def costs(cls, config: Any, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """Both products."""
        return Costs(
            (
                Product("router down", tokens, config.width, dims.hidden_size),
                Product("router up", tokens, config.num_experts, config.width),
            )
        )

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Routing:
        """Route `x` [B, S, D]."""
        state = F.linear(x, self.down)
        if "deep_toy" in carry:
            state = state + 0.5 * carry["deep_toy"]
        scores = F.linear(state, self.up).float().softmax(-1)
        weights, experts = scores.flatten(0, 1).topk(self.config.top_k, dim=-1)
        ids = torch.arange(self.config.num_experts, device=x.device)
        loads = (experts.flatten().unsqueeze(-1) == ids).sum(0)
        return Routing(experts, weights, loads, scores.new_zeros(()), {"deep_toy": state})


class ReluConfig(LayerConfig):
    """The options of `ffn: {kind: relu_toy}`."""

    kind: Literal["relu_toy"] = "relu_toy"
    ffn_size: Positive = 1024


class Relu(Layer):
    """`down(relu(up x)^2)` (arXiv 2109.08668)."""

    Config = ReluConfig
    up: nn.Parameter
    down: nn.Parameter

    @classmethod
    def specs(cls, config: ReluConfig, dims: Dims) -> Specs:
        """Two matrices."""
        width, size = config.ffn_size, dims.hidden_size
        rows = Cut(0, units=width, field="ffn_size")
        return {
            "up": matrix(width, size, dims.init_std, rows),
            "down": matrix(size, width, dims.residual_std, Cut(1, units=width, field="ffn_size")),
        }

    @classmethod
    def costs(cls, config: Any, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """Two products."""
        up = Product("up", tokens, config.ffn_size, dims.hidden_size)
        down = Product("down", tokens, dims.hidden_size, config.ffn_size)
        return Costs((up, down), saved=2 * tokens * config.ffn_size)

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Output:
        """[B, S, D] to [B, S, D]."""
        return Output(F.linear(F.linear(x, self.up).relu().square(), self.down))


class ParallelConfig(LayerConfig):
    """The options of `block: {kind: parallel_toy}`: none."""

    kind: Literal["parallel_toy"] = "parallel_toy"


class Parallel(Block):
    """`x + mixer(norm(x)) + ffn(norm(x))`."""

    Config = ParallelConfig

    @classmethod
    def specs(cls, config: Kinds, dims: Dims) -> Specs:
        """One norm, the mixer and the feed-forward layer."""
        norm = under("norm", RMSNorm.specs(dims))
        return {**norm, **mixer_specs(config, dims), **ffn_specs(config, dims)}

    @classmethod
    def own_costs(cls, config: Any, dims: Dims, tokens: int) -> Costs:
        """The norm and the additions."""
        return Costs(moved=6 * tokens * dims.hidden_size, saved=3 * tokens * dims.hidden_size)

    def __init__(self, config: Kinds, dims: Dims, grid: Grid) -> None:
        super().__init__(config, dims, grid)
        self.norm = RMSNorm(dims)
        self.mixer = make_mixer(config, dims, grid)
        self.ffn = make_ffn(config, dims, grid)

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> BlockOutput:
        """`x` [B, S, D] with what the layers before handed on."""
        normed = self.norm(x)
        mixed, out = self.mixer(normed, carry, flow), self.ffn(normed, carry, flow)
        carry = carry | (mixed.carry or {}) | (out.carry or {})
        return BlockOutput(x + mixed.y + out.y, carry, total(x, mixed.aux, out.aux), out.loads)


class EngineToy(Native):
    """The native engine under another name."""

    name = "engine_toy"

    @classmethod
    def make(cls, options: EngineOptions, grid: Grid) -> Engine:
        """Says that it was here."""
        print("engine_toy trains", flush=True)
        return super().make(options, grid)
