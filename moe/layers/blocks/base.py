"""What every block is: one layer of the model, made of a mixer and a feed-forward layer."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...grid import Grid
from ...spec import Specs, under
from ..base import Carry, Dims, Flow, Layer, LayerConfig
from ..costs import Costs
from ..ffns import FFNS
from ..mixers import MIXERS


@dataclass(frozen=True)
class Kinds:
    """The options of one layer's three parts."""

    block: LayerConfig
    mixer: LayerConfig
    ffn: LayerConfig


class BlockOutput(NamedTuple):
    """`x` [B, S, D] and `carry` for the next layer. `aux` scalar fp32: auxiliary losses, summed
    over sequences. `loads` [E] int64: tokens sent to each expert; None without experts."""

    x: torch.Tensor
    carry: Carry
    aux: torch.Tensor
    loads: torch.Tensor | None


class Block(Layer):
    """A mixer and a feed-forward layer around the residual stream.

    A kind fills `specs` (in the order of its modules), `own_costs`, `__init__` and `forward`.
    """

    mixer: Layer
    ffn: Layer

    @classmethod
    def own_costs(cls, config: Any, dims: Dims, tokens: int) -> Costs:
        """Its work besides that of its two parts."""
        raise NotImplementedError

    @classmethod
    def costs(cls, config: Kinds, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """Its own and those of its parts."""
        mixer, ffn = config.mixer, config.ffn
        return (
            cls.own_costs(config.block, dims, tokens)
            + MIXERS[mixer.kind].costs(mixer, dims, tokens, length, ep)
            + FFNS[ffn.kind].costs(ffn, dims, tokens, length, ep)
        )

    @classmethod
    def expert_count(cls, config: Kinds) -> int:
        """The feed-forward layer's."""
        return FFNS[config.ffn.kind].expert_count(config.ffn)

    @classmethod
    def counts_batch(cls, config: Kinds) -> bool:
        """Whether the feed-forward layer does."""
        return FFNS[config.ffn.kind].counts_batch(config.ffn)

    @classmethod
    def by_depth(cls, config: Kinds) -> bool:
        """Whether a part of it does."""
        mixer, ffn = MIXERS[config.mixer.kind], FFNS[config.ffn.kind]
        return mixer.by_depth(config.mixer) or ffn.by_depth(config.ffn)

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> BlockOutput:
        """`x` [B, S, D] with what the layers before handed on."""
        raise NotImplementedError

    def prepare(self, flow: Flow) -> None:
        """Let both parts prepare."""
        self.mixer.prepare(flow)
        self.ffn.prepare(flow)

    def after_update(self, loads: torch.Tensor) -> None:
        """Let the feed-forward layer move its biases; `loads` [E] are the global batch's."""
        self.ffn.after_update(loads)


def mixer_specs(config: Kinds, dims: Dims) -> Specs:
    """The mixer's parameters, named from the block."""
    return under("mixer", MIXERS[config.mixer.kind].specs(config.mixer, dims))


def ffn_specs(config: Kinds, dims: Dims) -> Specs:
    """The feed-forward layer's parameters, named from the block."""
    return under("ffn", FFNS[config.ffn.kind].specs(config.ffn, dims))


def make_mixer(config: Kinds, dims: Dims, grid: Grid) -> Layer:
    """The module of the block's mixer."""
    mixer: Layer = MIXERS[config.mixer.kind](config.mixer, dims, grid)
    return mixer


def make_ffn(config: Kinds, dims: Dims, grid: Grid) -> Layer:
    """The module of the block's feed-forward layer."""
    ffn: Layer = FFNS[config.ffn.kind](config.ffn, dims, grid)
    return ffn
