"""The decoder: embedding, blocks chosen by a pattern, output projection and loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..kernels.cross_entropy import linear_cross_entropy
from ..kernels.rms_norm import add_rms_norm, rms_norm
from .batch import IGNORE, Batch
from .config import ModelConfig
from .grid import Groups
from .layers.base import Context
from .layers.ffns import FFNS
from .layers.ffns.base import FFNOutput
from .layers.mixers import MIXERS
from .layers.mixers.attention import document_mask
from .layers.rope import rope_table


@dataclass(frozen=True)
class ModelOutput:
    """Sums over this rank's micro-batch, so that any split of a global batch adds up.

    `loss_sum` scalar fp32: cross-entropy over all targets, in nats. `aux_sum` scalar fp32:
    weighted balancing losses over all sequences. `counts` [moe layers, E] int64.
    """

    loss_sum: torch.Tensor
    aux_sum: torch.Tensor
    counts: torch.Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis of `x` [..., size]."""
        return rms_norm(x, self.weight, self.eps)

    def after_add(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + y, its norm), both [..., size]."""
        return add_rms_norm(x, y, self.weight, self.eps)


class Block(nn.Module):
    """Pre-norm residual block: a mixer, then a feed-forward layer."""

    def __init__(self, config: ModelConfig, mixer: str, ffn: str, groups: Groups) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mixer = MIXERS[mixer](config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = FFNS[ffn](config, groups)

    def forward(self, x: torch.Tensor, context: Context) -> FFNOutput:
        """[B, S, D] to [B, S, D] with the layer's balancing loss and counts."""
        x, normed = self.ffn_norm.after_add(x, self.mixer(self.mixer_norm(x), context))
        out = self.ffn(normed)
        return FFNOutput(x + out.y, out.aux, out.counts)


class Model(nn.Module):
    """A decoder-only language model. `config.vocab_size` must be set."""

    def __init__(self, config: ModelConfig, groups: Groups, recompute: bool = False) -> None:
        super().__init__()
        self.config, self.groups, self.recompute = config, groups, recompute
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Block(config, *kind, groups) for kind in layer_kinds(config))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = (
            None
            if config.tie_embeddings
            else nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        )

    def forward(self, batch: Batch) -> ModelOutput:
        """Loss of one micro-batch; collective over the expert-parallel group."""
        context = self._context(batch.documents)
        x = F.embedding(batch.tokens, self.embedding)
        aux = torch.zeros((), device=x.device)
        counts = []
        for block in self.layers:
            out = self._run(block, x, context)
            x, aux = out.y, aux + out.aux
            if out.counts is not None:
                counts.append(out.counts)
        head = self.embedding if self.head is None else self.head
        states = self.norm(x).flatten(0, 1)
        loss = linear_cross_entropy(states, head, batch.targets.flatten(), IGNORE)
        return ModelOutput(loss, aux, torch.stack(counts) if counts else aux.new_zeros(0, 0))

    def _run(self, block: nn.Module, x: torch.Tensor, context: Context) -> FFNOutput:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, x, context, use_reentrant=False)
        return block(x, context)

    def _context(self, documents: torch.Tensor) -> Context:
        c = self.config
        width = int(c.head_dim * c.rope_fraction)
        rope = rope_table(documents.shape[1], width, c.rope_theta, documents.device)
        return Context(documents, document_mask(documents), rope)

    def update_router_bias(self, counts: torch.Tensor) -> None:
        """Move every router's balancing bias by the global `counts` [moe layers, E]."""
        if self.config.moe.bias_update_rate == 0:
            return
        routers: list[Any] = [b.ffn.router for b in self.layers if hasattr(b.ffn, "router")]
        for router, count in zip(routers, counts, strict=True):
            router.update_bias(count)


def layer_kinds(config: ModelConfig) -> list[tuple[str, str]]:
    """(mixer, ffn) of every layer: the pattern repeated over the depth."""
    entries = [tuple(entry.split("/")) for entry in config.pattern]
    return [entries[i % len(entries)] for i in range(config.num_layers)]  # type: ignore[misc]
