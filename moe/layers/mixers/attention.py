"""Full softmax attention with grouped queries, inside each document."""

from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from ...section import Fraction, Positive
from ...spec import Cut, Specs, matrix, vector
from ..base import Carry, Dims, Flow, Layer, LayerConfig, Output
from ..costs import Costs, Product
from ..rope import apply_rope, rope_table


@cache
def _flex() -> tuple[Any, Any]:
    """Compiled (attention, block mask); uncompiled, FlexAttention stores all scores. Imported on
    first use: only GPUs take it, and the compiler's import takes seconds."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask)


def document_mask(documents: torch.Tensor) -> Any:
    """What `attend` needs to keep `documents` [B, S] apart and causal: a boolean
    [B, 1, S, S] on CPU, a FlexAttention block mask on GPUs."""
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


class AttentionConfig(LayerConfig):
    """The options of `mixer: {kind: attention}`."""

    kind: Literal["attention"] = "attention"
    num_heads: Positive = 4
    num_kv_heads: Positive = 2
    head_dim: Positive = 64
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_fraction: Fraction = 1.0
    """Share of each head's channels that rotates."""
    qk_norm: Literal[True, False, "whole"] = False
    """RMSNorm on queries and keys: true norms each head (Qwen3), `whole` all heads together
    (OLMoE)."""

    @model_validator(mode="after")
    def _check(self) -> "AttentionConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}: every KV head serves the same number of query heads"
            )
        if self.rope_width % 2:
            raise ValueError(
                f"rope_fraction {self.rope_fraction} of head_dim {self.head_dim} is an odd width: "
                "RoPE rotates pairs"
            )
        return self

    @property
    def rope_width(self) -> int:
        """Channels of a head that rotate."""
        return int(self.head_dim * self.rope_fraction)


class Attention(Layer):
    """Grouped-query attention (arXiv 2305.13245), RoPE, optional RMSNorm on queries and keys."""

    Config = AttentionConfig
    config: AttentionConfig
    q: nn.Parameter
    k: nn.Parameter
    v: nn.Parameter
    o: nn.Parameter
    q_norm: nn.Parameter
    k_norm: nn.Parameter

    @classmethod
    def specs(cls, config: AttentionConfig, dims: Dims) -> Specs:
        """Four projections, cut by heads, and the norms that `qk_norm` asks for."""
        d, h, kv = config.head_dim, config.num_heads, config.num_kv_heads
        heads = Cut(0, units=h, field="num_heads")
        kv_heads = Cut(0, units=kv, field="num_kv_heads", copies=True)
        size, std = dims.hidden_size, dims.init_std
        found = {
            "q": matrix(h * d, size, std, heads),
            "k": matrix(kv * d, size, std, kv_heads),
            "v": matrix(kv * d, size, std, kv_heads),
            "o": matrix(size, h * d, dims.residual_std, replace(heads, axis=1)),
        }
        if config.qk_norm:
            widths = (h * d, kv * d) if config.qk_norm == "whole" else (d, d)
            found |= {"q_norm": vector(widths[0], 1.0), "k_norm": vector(widths[1], 1.0)}
        return found

    @classmethod
    def costs(cls, config: Any, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """Projections; causal scores and values over whole sequences (half of the square: document
        boundaries, which leave less, are not deducted); RoPE and norms read and write queries and
        keys twice; keys and values of the tokens before."""
        q, kv, d = config.num_heads * config.head_dim, config.num_kv_heads, dims.hidden_size
        kv *= config.head_dim
        products = (
            Product("q", tokens, q, d),
            Product("kv", tokens, kv, d, 2),
            Product("o", tokens, d, q),
        )
        return Costs(
            products,
            mixing_flops=2.0 * tokens * length * q,
            moved=4 * tokens * (q + kv),
            saved=tokens * (2 * q + 2 * kv),
            state=2 * kv * length,
        )

    def prepare(self, flow: Flow) -> None:
        """Mask and rotary table, once for all layers that share them."""
        documents, c = flow.documents, self.config
        flow.make("mask", lambda: document_mask(documents))
        flow.make(
            self._rope,
            lambda: rope_table(documents.shape[1], c.rope_width, c.rope_theta, documents.device),
        )

    @property
    def _rope(self) -> tuple[str, int, float]:
        return "rope", self.config.rope_width, self.config.rope_theta

    def forward(self, x: torch.Tensor, carry: Carry, flow: Flow) -> Output:
        """[B, S, D] to [B, S, D]."""
        c, rope = self.config, flow.made[self._rope]
        heads = c.num_heads, c.num_kv_heads, c.num_kv_heads
        q, k, v = (
            F.linear(x, w).unflatten(-1, (n, c.head_dim))
            for w, n in zip((self.q, self.k, self.v), heads, strict=True)
        )
        if c.qk_norm:
            q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), flow.made["mask"])
        return Output(F.linear(y.transpose(1, 2).flatten(2), self.o))

    def _normed(self, x: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
        """RMSNorm of `x` [B, S, H, d] over runs of as many channels as `weight` has."""
        runs = x.flatten(2).unflatten(2, (-1, weight.numel()))
        return F.rms_norm(runs, (weight.numel(),), weight, self.dims.norm_eps).view_as(x)
