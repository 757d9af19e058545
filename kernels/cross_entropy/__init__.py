"""Cross-entropy fused with the output projection, so that not all logits exist at once."""

from importlib.util import find_spec

import torch

from ..forms import use_triton
from . import plain

_LIBRARY = find_spec("liger_kernel") is not None


def linear_cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ignore_index: int
) -> torch.Tensor:
    """Summed cross-entropy in nats of the logits `x weight^T`: scalar fp32.

    `x` [N, D] and `weight` [V, D] of one dtype, `targets` [N] int64; targets equal to
    `ignore_index` count nothing. On a GPU, with the extra `gpu` installed, the gradients are found
    in the forward pass by chunks of tokens, those of `weight` summed in fp32; else plain torch
    runs.
    """
    if use_triton(x) and _LIBRARY:
        from .fused import loss_and_gradients

        needed = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        return loss_and_gradients(x, weight, targets, ignore_index, needed)[0]
    return plain.linear_cross_entropy(x, weight, targets, ignore_index)
