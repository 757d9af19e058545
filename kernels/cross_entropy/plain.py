"""Output projection and cross-entropy in plain torch, all logits at once."""

import torch
from torch.nn import functional as F


def linear_cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ignore_index: int
) -> torch.Tensor:
    """Summed cross-entropy in nats, scalar fp32, of the logits `x weight^T`, made in the dtype of
    `x` and then fp32: `x` [N, D], `weight` [V, D] of one dtype, `targets` [N] int64."""
    logits = F.linear(x, weight).float()
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
