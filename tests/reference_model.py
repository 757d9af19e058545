"""The whole model a second time, in plain fp64 and straight from the papers, to hold ours against.

One head, one expert and one sequence at a time; it shares no code with the package. Weights come
under the canonical names, and autograd gives the gradients.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

IGNORED = -100
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """A model with every option on: three layers, two of them mixtures of experts."""

    vocab: int = 40
    hidden: int = 16
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    ffn: int = 25
    layers: tuple[str, ...] = ("moe", "dense", "moe")
    theta: float = 100.0
    """Small, so that the positions of a short sequence turn every pair."""
    rope_fraction: float = 0.5
    qk_norm: bool | str = True
    eps: float = 1e-5
    tied: bool = False
    experts: int = 6
    top_k: int = 2
    expert_size: int = 8
    shared: int = 16
    score: str = "sigmoid"
    normalize: bool = True
    scope: str = "sequence"
    balance: float = 0.3
    z: float = 0.1
    bias_rate: float = 0.01


@dataclass(frozen=True)
class Sums:
    """Over all sequences: cross-entropy in nats, weighted balancing losses; targets that count;
    `loads` [MoE layers][experts] tokens; `logits` [B, S, V]."""

    cross_entropy: torch.Tensor
    balancing: torch.Tensor
    targets: int
    sequences: int
    loads: list[list[int]]
    logits: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        """What a step lowers: the mean over targets plus the balancing losses' over sequences."""
        return self.cross_entropy / self.targets + self.balancing / self.sequences


def shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter's canonical name and shape."""
    d, width = shape.hidden, shape.head_dim
    yield "embedding", (shape.vocab, d)
    for i, kind in enumerate(shape.layers):
        at = f"layers.{i}"
        yield f"{at}.mixer_norm.weight", (d,)
        yield f"{at}.ffn_norm.weight", (d,)
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads)):
            yield f"{at}.mixer.{name}", (heads * width, d)
            if shape.qk_norm:
                whole = shape.qk_norm == "whole"
                yield f"{at}.mixer.{name}_norm", (heads * width if whole else width,)
        yield f"{at}.mixer.v", (shape.kv_heads * width, d)
        yield f"{at}.mixer.o", (d, shape.heads * width)
        yield from _ffn_shapes(shape, f"{at}.ffn", kind)
    yield "norm.weight", (d,)
    if not shape.tied:
        yield "head", (shape.vocab, d)


def _ffn_shapes(shape: Shape, at: str, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    widths = {f"{at}.mlp": shape.ffn}
    if kind == "moe":
        yield f"{at}.router.weight", (shape.experts, shape.hidden)
        widths = {f"{at}.experts.{e}": shape.expert_size for e in range(shape.experts)}
        if shape.shared:
            widths[f"{at}.shared"] = shape.shared
    for name, width in widths.items():
        yield f"{name}.gate_up", (2 * width, shape.hidden)
        yield f"{name}.down", (shape.hidden, width)


def draw(shape: Shape, seed: int, scale: float = 0.4) -> Weights:
    """Random fp64 weights that fp32 holds exactly; norms are far from one."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, size in shapes(shape):
        value = torch.randn(size, generator=generator) * scale
        made[name] = (value + 1.5 if len(size) == 1 else value).double()
    return made


def biases(shape: Shape, seed: int) -> Weights:
    """Every router's balancing bias, large enough to move choices."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.ffn.router.bias": torch.rand(shape.experts, generator=generator).double() / 4
        for i, kind in enumerate(shape.layers)
        if kind == "moe"
    }


def run(
    shape: Shape,
    weights: Weights,
    bias: Weights,
    tokens: torch.Tensor,
    targets: torch.Tensor,
    documents: torch.Tensor,
) -> Sums:
    """The sums over sequences `tokens`, `targets` and `documents` [B, S]."""
    x = weights["embedding"][tokens]
    balancing, loads = torch.zeros((), dtype=torch.float64), []
    for i, kind in enumerate(shape.layers):
        at = f"layers.{i}"
        normed = rms_norm(x, weights[f"{at}.mixer_norm.weight"], shape.eps)
        rows = zip(normed, documents, strict=True)
        x = x + torch.stack([attention(shape, weights, f"{at}.mixer", *row) for row in rows])
        normed = rms_norm(x, weights[f"{at}.ffn_norm.weight"], shape.eps)
        if kind == "dense":
            x = x + swiglu(normed, weights, f"{at}.ffn.mlp")
            continue
        y, loss, load = mixture(shape, weights, bias, f"{at}.ffn", normed)
        x, balancing = x + y, balancing + loss
        loads.append(load)
    head = weights["embedding" if shape.tied else "head"]
    logits = rms_norm(x, weights["norm.weight"], shape.eps) @ head.T
    counted = targets != IGNORED
    chosen = logits[counted].gather(-1, targets[counted].unsqueeze(-1)).squeeze(-1)
    entropy = (logits[counted].exp().sum(-1).log() - chosen).sum()
    return Sums(entropy, balancing, int(counted.sum()), len(tokens), loads, logits)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt() * weight


def swiglu(x: torch.Tensor, weights: Weights, at: str) -> torch.Tensor:
    both = weights[f"{at}.gate_up"]
    gate, up = x @ both[: len(both) // 2].T, x @ both[len(both) // 2 :].T
    return (gate / (1 + (-gate).exp()) * up) @ weights[f"{at}.down"].T


def rotate(x: torch.Tensor, rotated: int, theta: float) -> torch.Tensor:
    """The first `rotated` channels of `x` [S, d], by complex numbers: channel c and c + half are
    one of them, turned by position * theta^(-c / half)."""
    half = rotated // 2
    if half == 0:
        return x
    pairs = torch.complex(x[:, :half], x[:, half:rotated])
    channel = torch.arange(half, dtype=torch.float64)
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * theta ** (-channel / half)
    turned = pairs * torch.complex(angle.cos(), angle.sin())
    return torch.cat([turned.real, turned.imag, x[:, rotated:]], dim=1)


def attention(
    shape: Shape, weights: Weights, at: str, x: torch.Tensor, documents: torch.Tensor
) -> torch.Tensor:
    """`x` [S, D] of one sequence, one query head at a time."""
    rotated, d = int(shape.head_dim * shape.rope_fraction), shape.head_dim

    def heads(name: str) -> list[torch.Tensor]:
        y = x @ weights[f"{at}.{name}"].T
        norm = weights.get(f"{at}.{name}_norm")
        if norm is not None and shape.qk_norm == "whole":
            y = rms_norm(y, norm, shape.eps)
        split = list(y.split(d, dim=1))
        if norm is not None and shape.qk_norm is True:
            split = [rms_norm(h, norm, shape.eps) for h in split]
        return split if name == "v" else [rotate(h, rotated, shape.theta) for h in split]

    queries, keys, values = heads("q"), heads("k"), heads("v")
    position = torch.arange(len(x))
    seen = (position[:, None] >= position) & (documents[:, None] == documents)
    out = []
    for h, q in enumerate(queries):
        served = h // (shape.heads // shape.kv_heads)
        scores = (q @ keys[served].T / math.sqrt(d)).exp() * seen
        out.append(scores / scores.sum(-1, keepdim=True) @ values[served])
    return torch.cat(out, dim=1) @ weights[f"{at}.o"].T


def mixture(
    shape: Shape, weights: Weights, bias: Weights, at: str, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """`x` [B, S, D] to the layer's output, its weighted balancing losses summed over sequences,
    and the tokens that each expert got."""
    logits = x @ weights[f"{at}.router.weight"].T
    scores = logits.exp() if shape.score == "softmax" else 1 / (1 + (-logits).exp())
    if shape.score == "softmax":
        scores = scores / scores.sum(-1, keepdim=True)
    order = (scores.detach() + bias[f"{at}.router.bias"]).argsort(dim=-1, descending=True)
    chosen = torch.zeros_like(scores).scatter(-1, order[..., : shape.top_k], 1.0)
    gates = scores * chosen
    if shape.normalize:
        gates = gates / gates.sum(-1, keepdim=True)
    y = swiglu(x, weights, f"{at}.shared") if shape.shared else torch.zeros_like(x)
    for e in range(shape.experts):
        y = y + gates[..., e, None] * swiglu(x, weights, f"{at}.experts.{e}")
    counts = chosen.sum(1)
    loss = shape.balance * balance(shape, scores, counts) + shape.z * z_loss(logits)
    return y, loss, [int(n) for n in counts.sum(0)]


def balance(shape: Shape, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """E * sum_i f_i P_i, summed over sequences (DeepSeek-V3, eq. 17-20); of the batch as a whole,
    once for each of its sequences."""
    shares = (scores / scores.sum(-1, keepdim=True)).mean(1)
    if shape.scope == "batch":
        counts = counts.mean(0).expand_as(counts)
    fractions = counts / counts.sum(-1, keepdim=True)
    return shape.experts * (fractions * shares).sum()


def z_loss(logits: torch.Tensor) -> torch.Tensor:
    """mean(log(sum(exp))^2), summed over sequences (ST-MoE, eq. 5)."""
    return logits.exp().sum(-1).log().square().mean(1).sum()
