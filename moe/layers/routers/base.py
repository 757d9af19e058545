"""What every router is."""

from dataclasses import dataclass
from typing import Any

import torch

from ...section import Positive
from ..base import Carry, Flow, Layer, LayerConfig


@dataclass(frozen=True)
class Routing:
    """Where each of T tokens goes.

    `experts` [T, k] int64 and `weights` [T, k] fp32; `loads` [E] int64, the tokens each expert
    gets from this rank; `aux` scalar fp32, the weighted balancing losses summed over sequences.
    `carry`: what the router changes in the carry.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    loads: torch.Tensor
    aux: torch.Tensor
    carry: Carry | None = None


class RouterConfig(LayerConfig):
    """What every router's options hold; the mixture's own values, unless they are given."""

    num_experts: Positive = 8
    top_k: Positive = 2


class Router(Layer):
    """Chooses `top_k` of `num_experts` experts for each token."""

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Routing:
        """Route `x` [B, S, D]."""
        raise NotImplementedError

    @classmethod
    def expert_count(cls, config: Any) -> int:
        """How many experts it routes to."""
        return config.num_experts
