"""Output projection and cross-entropy by chunks of tokens, as one operator.

The chunks' work is liger-kernel's (BSD-2-Clause, Triton, for AMD and NVIDIA): per chunk one product
for the logits, one kernel that turns them into losses and gradients in place, and two products. It
waits for the host once a call, to count the targets.
"""

from typing import Any

import torch
from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

CHUNK_ROWS = 4096
"""Tokens whose logits exist at once: enough rows for the products to run at full rate, and each
chunk reads and writes the weight's whole fp32 gradient."""


@torch.library.custom_op("moelstrom::linear_cross_entropy", mutates_args=())
def loss_and_gradients(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ignore_index: int,
    gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed loss (scalar fp32) of `x` [N, D] and `targets` [N] int64, and with `gradients` those
    of `x` and of `weight` [V, D], in their dtypes (otherwise empty)."""
    (rows, width), vocabulary = x.shape, weight.shape[0]
    # liger bounds a chunk's logits by this constant times the elements of `x`.
    budget = vocabulary * min(CHUNK_ROWS, rows) // max(rows * width, 1)
    loss, _, _, _, dx, dw, _ = fused_linear_cross_entropy_forward(
        x,
        weight,
        targets,
        ignore_index=ignore_index,
        reduction="sum",
        accum_dtype=torch.float32,
        compute_gradients=gradients,
        weight_requires_grad=gradients,
        chunk_mem_const=max(1, budget),
    )
    if not gradients:
        return loss, x.new_empty(0), weight.new_empty(0)
    return loss, dx, dw


@loss_and_gradients.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ignore_index: int,
    gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss = x.new_empty((), dtype=torch.float32)
    if not gradients:
        return loss, x.new_empty(0), weight.new_empty(0)
    return loss, torch.empty_like(x), torch.empty_like(weight)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    # Else gradients of zeros are made for them, as large as the output projection.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad: torch.Tensor, *unused: Any) -> tuple[torch.Tensor | None, ...]:
    dx, dw = ctx.saved_tensors
    return dx * grad, dw * grad, None, None, None


loss_and_gradients.register_autograd(_backward, setup_context=_context)
