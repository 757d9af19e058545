"""The SwiGLU experts' computation over ragged groups of tokens.

On a GPU it is Triton kernels for the forward and the backward pass (`ops`, and `moe` for the layer
with gather and combine); elsewhere the plain torch forms of `reference` run.
"""

from collections.abc import Iterator

import torch

from ..forms import use_triton
from ..spec import Variant
from ..targets import Target
from .reference import grouped_mlp_reference, grouped_mlp_torch, moe_mlp_torch, sort_by_expert_torch

__all__ = [
    "grouped_mlp",
    "grouped_mlp_reference",
    "grouped_mlp_torch",
    "moe_mlp",
    "moe_mlp_torch",
    "sort_by_expert",
    "variants",
]


def grouped_mlp(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
    sums: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Run each expert's SwiGLU MLP on its own run of rows.

    `x` [N, D] sorted by expert; `gate_up` [E, 2F, D] (gate rows first); `down` [E, D, F];
    `offsets` [E] int32, the end of each expert's rows (the last is N). Returns [N, D] in the dtype
    of `x`. Experts may be empty. On CPU, widths are multiples of 16 bytes.

    `sums` (GPU only), fp32 of the shapes of `gate_up` and `down`: the backward pass adds the
    weights' gradients to them, and leaves none to autograd.
    """
    if not use_triton(x):
        return grouped_mlp_torch(x, gate_up, down, offsets)
    from .ops import forward

    save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, gate_up, down))
    return forward(x, gate_up, down, offsets, save, *(sums or (None, None)))[0]


def moe_mlp(
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    order: torch.Tensor,
    inverse: torch.Tensor,
    offsets: torch.Tensor,
) -> torch.Tensor:
    """Gather each expert's tokens, run its SwiGLU MLP on them and add the results by `weights`:
    `combine_rows(grouped_mlp(gather_rows(x)))` without keeping the rows.

    `x` [T, D]; `weights` [T, k] floating; `order`, `inverse` [T * k] and `offsets` [E] as
    `sort_by_expert` gives them; `gate_up` and `down` as for `grouped_mlp`. Returns [T, D] in the
    dtype of `x`; differentiable in `x`, `weights`, `gate_up` and `down`.
    """
    inputs = (x, weights, gate_up, down)
    if not use_triton(x):
        return moe_mlp_torch(*inputs, order, inverse, offsets)
    from .moe import forward

    save = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    return forward(*inputs, order, inverse, offsets, save)[0]


def sort_by_expert(
    experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort token copies by expert, stably, without waiting for the host.

    `experts` [T, k] (or [N]) int64 ids below `num_experts`. Returns `order` [T * k] int64, the
    copies' indices in expert order, `inverse` [T * k] int64, which undoes it, and `offsets` [E]
    int32, the end of each expert's copies.
    """
    if not use_triton(experts):
        return sort_by_expert_torch(experts, num_experts)
    from .routing import sort

    return sort(experts.flatten(), num_experts)


def variants(target: Target) -> Iterator[Variant]:
    """Every committed form of the kernels for `target`."""
    from . import configs, routing

    yield from configs.variants(target)
    yield from routing.variants(target)
