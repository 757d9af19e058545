"""The Triton form of the whole layer as torch operators: gather, expert MLP, weighted combine.

Between the passes it keeps gate and up (`hidden`) alone. The experts' rows of x are gathered by the
first product while it loads them, and again, as copies, for its weights' gradient; the rows of y
go when they are combined, as the routing weights' gradient is also the sum of d(act) * act.
"""

from typing import Any

import torch

from ..permute.fused import reduce_rows, spread_rows
from .launch import GroupedLayer


@torch.library.custom_op("moelstrom::moe_mlp", mutates_args=())
def forward(
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    order: torch.Tensor,
    inverse: torch.Tensor,
    offsets: torch.Tensor,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y [T, D], hidden [N, 2F]) of `moe_mlp`'s arguments; hidden has no rows unless `save`."""
    if not order.numel():
        return x.new_empty(x.shape), x.new_empty(0, gate_up.shape[1])
    x, gate_up, down = x.contiguous(), gate_up.contiguous(), down.contiguous()
    copies = weights.shape[1]
    layer = GroupedLayer(x, gate_up, offsets, (down,), copies=copies)
    hidden, act = layer.gate_up(x, gate_up, save, order)
    rows = layer.down(act, down)
    del act
    return reduce_rows(rows, inverse, copies, weights), hidden


@forward.register_fake
def _forward_fake(
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    order: torch.Tensor,
    inverse: torch.Tensor,
    offsets: torch.Tensor,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = order.shape[0] if save else 0
    return x.new_empty(x.shape), x.new_empty(rows, gate_up.shape[1])


@torch.library.custom_op("moelstrom::moe_mlp_backward", mutates_args=())
def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    order: torch.Tensor,
    inverse: torch.Tensor,
    offsets: torch.Tensor,
    hidden: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x [T, D], weights [T, k], gate_up [E, 2F, D] and down [E, D, F], each in its
    tensor's dtype, of dy [T, D]; `hidden` [T * k, 2F] is the forward pass's, `order`, `inverse`
    [T * k] int64 and `offsets` [E] int32 are `sort_by_expert`'s."""
    gate_up, down = gate_up.contiguous(), down.contiguous()
    gate_up_gradient, down_gradient = torch.empty_like(gate_up), torch.empty_like(down)
    if not order.numel():
        no_rows = x.new_empty(x.shape), torch.empty_like(weights)
        return *no_rows, gate_up_gradient.zero_(), down_gradient.zero_()
    copies = weights.shape[1]
    dy_rows = spread_rows(dy, inverse, copies)
    layer = GroupedLayer(dy_rows, gate_up, offsets, (down,))
    by_row = weights.flatten().index_select(0, order)
    dhidden, act, d_weights = layer.weighted_activation_gradient(dy_rows, down, hidden, by_row)
    layer.weight_gradient("down_gradient", dy_rows, act, down_gradient, add=False)
    del dy_rows, act
    dx = reduce_rows(layer.input_gradient(dhidden, gate_up), inverse, copies, None)
    x_rows = spread_rows(x, inverse, copies)
    layer.weight_gradient("gate_up_gradient", dhidden, x_rows, gate_up_gradient, add=False)
    d_weights = d_weights.index_select(0, inverse).view(weights.shape).to(weights.dtype)
    return dx, d_weights, gate_up_gradient, down_gradient


@backward.register_fake
def _backward_fake(
    dy: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    order: torch.Tensor,
    inverse: torch.Tensor,
    offsets: torch.Tensor,
    hidden: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dx, d_weights = x.new_empty(x.shape), torch.empty_like(weights)
    return dx, d_weights, torch.empty_like(gate_up), torch.empty_like(down)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    # Else a gradient of zeros is made for it, as large as the pre-activations.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-1], output[1])


def _differentiate(ctx: Any, dy: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
    return *backward(dy, *ctx.saved_tensors), None, None, None, None


forward.register_autograd(_differentiate, setup_context=_keep)
