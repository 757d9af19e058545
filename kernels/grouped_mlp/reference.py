"""The plain torch forms: what runs on CPU, and what the kernels are held against."""

import torch
from torch.nn import functional as F

from ..permute import inverse_permutation, plain


def grouped_mlp_torch(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """`grouped_mlp` by `torch.nn.functional.grouped_mm`: `x` [N, D] sorted by expert, `gate_up`
    [E, 2F, D], `down` [E, D, F] of one dtype, `offsets` [E] int32; returns [N, D]. Widths are
    multiples of 16 bytes."""
    hidden = F.grouped_mm(x, gate_up.transpose(-2, -1), offs=offsets)
    gate, up = hidden.chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up, down.transpose(-2, -1), offs=offsets)


def moe_mlp_torch(
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    order: torch.Tensor,
    inverse: torch.Tensor,
    offsets: torch.Tensor,
) -> torch.Tensor:
    """`moe_mlp` by its parts' plain forms: `x` [T, D], `weights` [T, k] floating, `gate_up`
    [E, 2F, D], `down` [E, D, F], `order`, `inverse` [T * k] int64, `offsets` [E] int32; returns
    [T, D] in the dtype of `x`. Widths are multiples of 16 bytes."""
    rows = plain.gather_rows(x, order, inverse, weights.shape[1])
    rows = grouped_mlp_torch(rows, gate_up, down, offsets)
    return plain.combine_rows(rows, order, inverse, weights)


def grouped_mlp_reference(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """`grouped_mlp` by a plain loop over experts, any width: `x` [N, D], `gate_up` [E, 2F, D],
    `down` [E, D, F] of one dtype, `offsets` [E] int32; returns [N, D]."""
    parts, start = [], 0
    for expert, end in enumerate(offsets.tolist()):
        gate, up = (x[start:end] @ gate_up[expert].T).chunk(2, dim=-1)
        parts.append((F.silu(gate) * up) @ down[expert].T)
        start = end
    return torch.cat(parts)


def sort_by_expert_torch(
    experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`sort_by_expert` by a stable argsort: `experts` [T, k] int64; returns `order` and `inverse`
    [T * k] int64, `offsets` [E] int32."""
    ids = experts.flatten()
    order = ids.argsort(stable=True)
    limits = torch.arange(num_experts, device=ids.device, dtype=ids.dtype)
    offsets = torch.searchsorted(ids[order], limits, right=True).to(torch.int32)
    return order, inverse_permutation(order), offsets
