"""Full softmax attention with grouped queries, inside each document."""

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...config import ModelConfig
from ..base import Context
from ..rope import apply_rope


@cache
def _flex() -> tuple[Any, Any]:
    """Compiled (attention, block mask); uncompiled, FlexAttention stores all scores. Imported on
    first use: only GPUs take it, and the compiler's import takes seconds."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask)


def document_mask(documents: torch.Tensor) -> Any:
    """What `attend` needs to keep `documents` [B, S] apart and causal (see Context.mask)."""
    batch, length = documents.shape
    if documents.is_cuda:

        def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
            return (q >= k) & (documents[b, q] == documents[b, k])

        return _flex()[1](visible, batch, None, length, length, device=str(documents.device))
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return ((documents.unsqueeze(2) == documents.unsqueeze(1)) & causal).unsqueeze(1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
    """Softmax attention: `q` [B, H, S, d], `k` and `v` [B, KV, S, d], H a multiple of KV."""
    grouped = q.shape[1] != k.shape[1]
    if q.is_cuda:
        return _flex()[0](q, k, v, block_mask=mask, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245), RoPE, optional RMSNorm on queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, h, kv = config.head_dim, config.num_heads, config.num_kv_heads
        self.heads = (h, kv, kv)
        self.head_dim, self.eps = d, config.norm_eps
        self.q = nn.Parameter(torch.empty(h * d, config.hidden_size))
        self.k = nn.Parameter(torch.empty(kv * d, config.hidden_size))
        self.v = nn.Parameter(torch.empty(kv * d, config.hidden_size))
        self.o = nn.Parameter(torch.empty(config.hidden_size, h * d))
        widths = (h * d, kv * d) if config.qk_norm == "whole" else (d, d)
        self.q_norm = nn.Parameter(torch.ones(widths[0])) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(widths[1])) if config.qk_norm else None

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """[B, S, D] to [B, S, D]."""
        q, k, v = (
            F.linear(x, w).unflatten(-1, (n, self.head_dim))
            for w, n in zip((self.q, self.k, self.v), self.heads, strict=True)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        q, k = apply_rope(q, context.rope), apply_rope(k, context.rope)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), context.mask)
        return F.linear(y.transpose(1, 2).flatten(2), self.o)

    def _normed(self, x: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
        """RMSNorm of `x` [B, S, H, d] over runs of as many channels as `weight` has."""
        runs = x.flatten(2).unflatten(2, (-1, weight.numel()))
        return F.rms_norm(runs, (weight.numel(),), weight, self.eps).view_as(x)
