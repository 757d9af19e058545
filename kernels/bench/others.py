"""The operators beside the experts: bytes a second, Newton-Schulz, cross-entropy."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..cross_entropy import linear_cross_entropy
from ..cross_entropy import plain as plain_cross_entropy
from ..newton_schulz import newton_schulz
from ..newton_schulz import plain as plain_newton_schulz
from ..permute import inverse_permutation
from ..permute import plain as plain_permute
from ..rms_norm import plain as plain_norm
from . import cases
from .accuracy import normal
from .timing import Call

OURS, TORCH = "moelstrom", "torch"
COPY_BYTES = 1 << 30
EPS = 1e-6


@dataclass(frozen=True)
class Stream:
    """A memory-bound operation: `bytes` that no form can avoid, and the calls that do it."""

    name: str
    bytes: int
    calls: dict[str, Call]


def copy() -> Stream:
    """The copy that sets the limit: reads and writes counted."""
    source, target = (
        torch.empty(COPY_BYTES, dtype=torch.int8, device=cases.DEVICE) for _ in range(2)
    )
    source.random_()
    return Stream("copy", 2 * COPY_BYTES, {TORCH: lambda: target.copy_(source)})


def streams() -> Iterator[Stream]:
    """Every memory-bound kernel at model width 2,048, one group of tensors at a time."""
    for tokens, copies in ((131_072, 1), (16_384, 8)):
        yield from _permutations(tokens, copies, 2048)
    yield from _norms(65_536, 2048)


def _permutations(tokens: int, copies: int, width: int) -> Iterator[Stream]:
    from ..permute import fused

    x, grad = normal(tokens, width), normal(tokens, width)
    rows = normal(tokens * copies, width)
    weights = torch.rand(tokens, copies, device=cases.DEVICE)
    order = torch.randperm(tokens * copies, device=cases.DEVICE)
    inverse = inverse_permutation(order)
    sizes = f"T{tokens} k{copies}"
    few, many, index = 2 * x.numel(), 2 * rows.numel(), 8 * order.numel()
    yield Stream(
        f"gather forward {sizes}",
        few + many + index,
        {
            OURS: lambda: fused.spread_rows(x, inverse, copies),
            TORCH: lambda: plain_permute.gather_rows(x, order, inverse, copies),
        },
    )
    yield Stream(
        f"gather backward {sizes}",
        few + many + index,
        {
            OURS: lambda: fused.reduce_rows(rows, inverse, copies, None),
            TORCH: lambda: rows.index_select(0, inverse).view(-1, copies, width).sum(1),
        },
    )
    yield Stream(
        f"combine forward {sizes}",
        few + many + index + 4 * weights.numel(),
        {
            OURS: lambda: fused.reduce_rows(rows, inverse, copies, weights),
            TORCH: lambda: plain_permute.combine_rows(rows, order, inverse, weights),
        },
    )
    yield Stream(
        f"combine backward {sizes}",
        few + 2 * many + index + 8 * weights.numel(),
        {OURS: lambda: fused.combine_backward(grad, rows, inverse, weights)},
    )


def _norms(rows: int, width: int) -> Iterator[Stream]:
    from ..rms_norm import fused

    x, y, g, h = (normal(rows, width) for _ in range(4))
    weight, scales = normal(width), torch.rand(4, width, device=cases.DEVICE)
    stream, stream_grad = x.float(), g.float()
    one = x.numel()
    sizes = f"[{rows}, {width}]"
    yield Stream(
        f"rms_norm forward {sizes}",
        4 * one,
        {
            OURS: lambda: fused.rms_norm(x, weight, EPS),
            TORCH: lambda: plain_norm.rms_norm(x, weight, EPS),
        },
    )
    wx, ww = (t.detach().requires_grad_() for t in (x, weight))
    normed = plain_norm.rms_norm(wx, ww, EPS)
    yield Stream(
        f"rms_norm backward {sizes}",
        6 * one,
        {
            OURS: lambda: fused.norm_backward(None, g, x, weight, EPS),
            TORCH: lambda: torch.autograd.grad(normed, (wx, ww), g, retain_graph=True),
        },
    )
    yield Stream(
        f"add_rms_norm forward {sizes}",
        8 * one,
        {
            OURS: lambda: fused.add_rms_norm(x, y, weight, EPS),
            TORCH: lambda: plain_norm.add_rms_norm(x, y, weight, EPS),
        },
    )
    total, added = plain_norm.add_rms_norm(wx, y, ww, EPS)
    yield Stream(
        f"add_rms_norm backward {sizes}",
        8 * one,
        {
            OURS: lambda: fused.norm_backward(h, g, x, weight, EPS),
            TORCH: lambda: torch.autograd.grad((total, added), (wx, ww), (h, g), retain_graph=True),
        },
    )
    yield Stream(
        f"scaled_add_rms_norm forward {sizes}",
        12 * one,
        {
            OURS: lambda: fused.scaled_add_rms_norm(stream, y, scales, weight, EPS),
            TORCH: lambda: plain_norm.scaled_add_rms_norm(stream, y, scales, weight, EPS),
        },
    )
    yield Stream(
        f"scaled_add_rms_norm backward {sizes}",
        18 * one,
        {OURS: lambda: fused.scaled_backward(stream_grad, g, stream, y, scales, weight, EPS)},
    )


def newton_schulz_calls(shape: tuple[int, int, int]) -> dict[str, Call]:
    """Five steps on a stack [n, r, c] of fp32 momentum."""
    m = normal(*shape, dtype=torch.float32)
    return {
        OURS: lambda: newton_schulz(m, 5),
        TORCH: lambda: plain_newton_schulz.newton_schulz(m, 5),
    }


MATRICES = ((32, 2048, 2048), (64, 1024, 2048), (128, 768, 2048), (4, 4096, 4096))


def newton_schulz_flops(shape: tuple[int, int, int]) -> int:
    """Of torch's form: X X^T, A A and B X, five times."""
    n, r, c = shape[0], min(shape[1:]), max(shape[1:])
    return 5 * n * (4 * r * r * c + 2 * r**3)


CROSS_ENTROPY = (8192, 2048, 131_072)
"""Tokens, width, vocabulary."""


def cross_entropy_calls() -> dict[str, Call]:
    """Forward and backward, all targets counting."""
    rows, width, vocabulary = CROSS_ENTROPY
    inputs = (
        normal(rows, width).requires_grad_(),
        normal(vocabulary, width, scale=width**-0.5).requires_grad_(),
    )
    targets = torch.randint(vocabulary, (rows,), device=cases.DEVICE)
    forms = {OURS: linear_cross_entropy, TORCH: plain_cross_entropy.linear_cross_entropy}

    def call(name: str) -> Call:
        return lambda: torch.autograd.grad(forms[name](*inputs, targets, -100), inputs)

    return {name: call(name) for name in forms}
