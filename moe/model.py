"""The decoder: embedding, layers, output projection and loss."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..kernels.cross_entropy import linear_cross_entropy
from .batch import IGNORE, Batch
from .config import ModelConfig, stack
from .grid import Grid
from .layers.base import Carry, Dims, Flow
from .layers.blocks import BLOCKS
from .layers.blocks.base import Block, BlockOutput
from .layers.costs import Costs, Product
from .layers.norm import RMSNorm
from .spec import Cut, Normal, Spec, Specs, under
from .state.names import Local, Parameters

Loads = tuple[torch.Tensor, ...]
"""Of each layer with experts, from the first to the last, the tokens [E] int64 of each expert."""


@dataclass(frozen=True)
class ModelOutput:
    """Sums over this rank's micro-batch, so that any split of a global batch adds up.

    `loss_sum` scalar fp32: cross-entropy over all targets, in nats. `aux_sum` scalar fp32:
    weighted auxiliary losses over all sequences. `loads`: this micro-batch's.
    """

    loss_sum: torch.Tensor
    aux_sum: torch.Tensor
    loads: Loads


def model_specs(config: ModelConfig) -> Specs:
    """Every parameter and buffer by its canonical name, in the order of the model's modules."""
    table = (config.vocab_size, config.hidden_size)
    spec = Spec(table, Normal(config.init_std), decay=True, cut=Cut(0))
    found = {"embedding": spec} if config.tie_embeddings else {"embedding": spec, "head": spec}
    for i, (kinds, dims) in enumerate(stack(config)):
        found |= under(f"layers.{i}", BLOCKS[kinds.block.kind].specs(kinds, dims))
    return found | under("norm", RMSNorm.specs(_dims(config)))


def head_costs(config: ModelConfig, tokens: int) -> Costs:
    """The output projection and the loss, which writes and reads the logits in the weights' dtype,
    and its gradient in place."""
    product = Product("head", tokens, config.vocab_size, config.hidden_size)
    return Costs((product,), moved=4 * tokens * config.vocab_size)


def _dims(config: ModelConfig) -> Dims:
    return Dims(config.hidden_size, config.num_layers, config.norm_eps, config.init_std)


class Model(nn.Module):
    """A decoder-only language model. `config.vocab_size` must be set."""

    def __init__(self, config: ModelConfig, grid: Grid, recompute: bool = False) -> None:
        super().__init__()
        self.config, self.grid, self.recompute = config, grid, recompute
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(
            BLOCKS[kinds.block.kind](kinds, dims, grid) for kinds, dims in stack(config)
        )
        self.norm = RMSNorm(_dims(config))
        self.head = (
            None
            if config.tie_embeddings
            else nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        )

    def parameters_here(self) -> Parameters:
        """This rank's parameters with what their layers say of them, in the order of the model."""
        specs, ep = model_specs(self.config), self.grid.ep
        return [
            (Local(name, tuple(p.shape), specs[name], ep.rank * p.shape[0]), p)
            if specs[name].experts
            else (Local(name, tuple(p.shape), specs[name]), p)
            for name, p in self.named_parameters()
        ]

    def forward(self, batch: Batch, counted: Loads = ()) -> ModelOutput:
        """Loss of one micro-batch; collective over the expert-parallel group. `counted`: the loads
        of the whole global batch, if they are known."""
        states, aux, loads = self.states(batch.tokens, batch.documents, counted)
        targets = batch.targets.flatten()
        loss = linear_cross_entropy(states.flatten(0, 1), self.projection, targets, IGNORE)
        return ModelOutput(loss, aux, loads)

    def states(
        self, tokens: torch.Tensor, documents: torch.Tensor, counted: Loads = ()
    ) -> tuple[torch.Tensor, torch.Tensor, Loads]:
        """What the output projection takes [B, S, D] for `tokens` [B, S] of `documents` [B, S],
        with `aux_sum` and `loads` as in ModelOutput."""
        flow = Flow(documents, dict(zip(self.routed, counted, strict=False)))
        for block in self._blocks():
            block.prepare(flow)
        x = F.embedding(tokens, self.embedding)
        carry: Carry = {}
        aux = torch.zeros((), device=x.device)
        loads = []
        for block in self._blocks():
            out = self._run(block, x, carry, flow)
            x, carry, aux = out.x, out.carry, aux + out.aux
            if out.loads is not None:
                loads.append(out.loads)
        return self.norm(x), aux, tuple(loads)

    @property
    def projection(self) -> torch.Tensor:
        """The output projection [V, D]."""
        return self.embedding if self.head is None else self.head

    def _blocks(self) -> list[Block]:
        return list(self.layers)  # type: ignore[arg-type]

    def _run(self, block: Block, x: torch.Tensor, carry: Carry, flow: Flow) -> BlockOutput:
        if self.recompute and torch.is_grad_enabled():
            found: BlockOutput = checkpoint(block, x, carry, flow, use_reentrant=False)
            return found
        return block(x, carry, flow)

    @property
    def routed(self) -> list[int]:
        """Depths of the layers with experts."""
        blocks = enumerate(self._blocks())
        return [i for i, block in blocks if type(block).expert_count(block.config)]

    @property
    def counts_batch(self) -> bool:
        """Whether a router asks for the loads of the global batch."""
        return any(type(block).counts_batch(block.config) for block in self._blocks())

    def after_update(self, loads: list[torch.Tensor]) -> None:
        """Let every layer with experts move what no gradient moves, by the global batch's `loads`
        [E] of each."""
        blocks = self._blocks()
        for i, load in zip(self.routed, loads, strict=True):
            blocks[i].after_update(load)
