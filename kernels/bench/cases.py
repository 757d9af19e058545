"""The benchmark's shapes: three widths, two loads, and the tensors of each."""

from dataclasses import dataclass

import torch

from ..permute import inverse_permutation

DEVICE = "cuda"
TOKENS = 16_384
SKEW = 5.0
"""Largest over smallest load of the skewed case."""


@dataclass(frozen=True)
class Width:
    """An expert layer: model width, expert width, experts, experts per token."""

    hidden: int
    ffn: int
    experts: int
    top_k: int

    def __str__(self) -> str:
        return f"d{self.hidden} f{self.ffn} E{self.experts} k{self.top_k}"

    def flops(self, tokens: int, backward: bool) -> int:
        """Of the GEMMs: three products of 2 D F a row, and twice that again backward."""
        forward = 6 * tokens * self.top_k * self.hidden * self.ffn
        return 3 * forward if backward else forward


WIDTHS = (Width(2048, 2048, 16, 1), Width(2048, 1024, 64, 8), Width(2048, 768, 128, 8))
LOADS = ("balanced", "skewed")


def loads(total: int, experts: int, load: str) -> list[int]:
    """Rows of each expert, summing to `total`: equal, or falling linearly from SKEW to 1 over the
    experts (which `route` shuffles)."""
    top = SKEW if load == "skewed" else 1.0
    shares = [top + (1.0 - top) * i / max(experts - 1, 1) for i in range(experts)]
    ends = [round(total * sum(shares[: i + 1]) / sum(shares)) for i in range(experts)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def route(counts: list[int], tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Experts [T, k] int64 that give every expert its count, no expert twice for a token.

    Needs counts of at most T each, k T together: then runs of one expert, dealt to the tokens in
    turn, never come back to a token.
    """
    ids = torch.randperm(len(counts), generator=generator)
    copies = ids.repeat_interleave(torch.tensor(counts)[ids])
    dealt = copies.view(-1, tokens).T
    return dealt[torch.randperm(tokens, generator=generator)].contiguous()


@dataclass(frozen=True)
class LayerCase:
    """One width and load on the GPU, in bf16.

    `x` [T, D], `rows` [N, D] the same sorted by expert, `weights` [T, k] fp32, `experts` [T, k],
    `offsets` [E] int32, `gate_up` [E, 2F, D], `down` [E, D, F]; `grad` [T, D] and `row_grad` [N, D]
    are the gradients that come back.
    """

    width: Width
    load: str
    tokens: int
    x: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor
    experts: torch.Tensor
    order: torch.Tensor
    inverse: torch.Tensor
    offsets: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    grad: torch.Tensor
    row_grad: torch.Tensor


def make(width: Width, load: str, tokens: int = TOKENS) -> LayerCase:
    """Draw a case: unit-variance tokens, weights scaled so that every layer keeps that."""
    generator = torch.Generator().manual_seed(0)
    copies = tokens * width.top_k
    experts = route(loads(copies, width.experts, load), tokens, generator).to(DEVICE)
    ranked, order = experts.flatten().sort(stable=True)
    ids = torch.arange(width.experts, device=DEVICE)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        drawn = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
        return drawn.mul_(scale).requires_grad_()

    torch.manual_seed(0)
    x = normal(tokens, width.hidden)
    return LayerCase(
        width=width,
        load=load,
        tokens=tokens,
        x=x,
        rows=x.detach()[order // width.top_k].requires_grad_(),
        weights=torch.rand(tokens, width.top_k, device=DEVICE).softmax(-1).requires_grad_(),
        experts=experts,
        order=order,
        inverse=inverse_permutation(order),
        offsets=torch.searchsorted(ranked, ids, right=True).to(torch.int32),
        gate_up=normal(width.experts, 2 * width.ffn, width.hidden, scale=width.hidden**-0.5),
        down=normal(width.experts, width.hidden, width.ffn, scale=width.ffn**-0.5),
        grad=normal(tokens, width.hidden).detach(),
        row_grad=normal(copies, width.hidden).detach(),
    )
