"""The Triton form of the expert MLP as torch operators, with their gradient.

The forward operator keeps gate and up (`hidden`); the backward one computes the activation again
from them while it turns d(act) into d(gate) and d(up), so the activation is never kept.
"""

from typing import Any

import torch

from .launch import GroupedLayer


@torch.library.custom_op("moelstrom::grouped_mlp", mutates_args=())
def forward(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
    save: bool,
    gate_up_sum: torch.Tensor | None = None,
    down_sum: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y [N, D], hidden [N, 2F]) of `grouped_mlp`'s arguments; hidden has no rows unless `save`.

    The sums are the backward pass's.
    """
    rows, width = x.shape[0], gate_up.shape[1] // 2
    if not rows:
        return x.new_empty(x.shape), x.new_empty(0, 2 * width)
    x, gate_up, down = x.contiguous(), gate_up.contiguous(), down.contiguous()
    layer = GroupedLayer(x, gate_up, offsets, (down,))
    hidden, act = layer.gate_up(x, gate_up, save)
    return layer.down(act, down), hidden


@forward.register_fake
def _forward_fake(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
    save: bool,
    gate_up_sum: torch.Tensor | None = None,
    down_sum: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = x.shape[0]
    return x.new_empty(x.shape), x.new_empty(rows if save else 0, gate_up.shape[1])


@torch.library.custom_op("moelstrom::grouped_mlp_backward", mutates_args=())
def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
    hidden: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x [N, D], gate_up [E, 2F, D] and down [E, D, F], each in its tensor's dtype, of
    dy [N, D]; `hidden` [N, 2F] is the forward pass's, `offsets` [E] int32."""
    gate_up_gradient, down_gradient = torch.empty_like(gate_up), torch.empty_like(down)
    if not x.shape[0]:
        return x.new_empty(x.shape), gate_up_gradient.zero_(), down_gradient.zero_()
    sums = (gate_up_gradient, down_gradient)
    dx = _gradients(dy, x, gate_up, down, offsets, hidden, sums, add=False)
    return dx, gate_up_gradient, down_gradient


@backward.register_fake
def _backward_fake(
    dy: torch.Tensor,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
    hidden: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), torch.empty_like(gate_up), torch.empty_like(down)


@torch.library.custom_op(
    "moelstrom::grouped_mlp_accumulate", mutates_args=("gate_up_sum", "down_sum")
)
def accumulate(
    dy: torch.Tensor,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
    hidden: torch.Tensor,
    gate_up_sum: torch.Tensor,
    down_sum: torch.Tensor,
) -> torch.Tensor:
    """The gradient of x [N, D] in its dtype; those of the weights are added to `gate_up_sum`
    [E, 2F, D] and `down_sum` [E, D, F], fp32. The other arguments are `backward`'s.

    For an engine that sums micro-batches in fp32 (gradients straight into its buffers): a bf16
    gradient for each of them, and the pass that would add it, do not exist then.
    """
    if not x.shape[0]:
        return x.new_empty(x.shape)
    sums = (gate_up_sum, down_sum)
    return _gradients(dy, x, gate_up, down, offsets, hidden, sums, add=True)


@accumulate.register_fake
def _accumulate_fake(
    dy: torch.Tensor,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
    hidden: torch.Tensor,
    gate_up_sum: torch.Tensor,
    down_sum: torch.Tensor,
) -> torch.Tensor:
    return x.new_empty(x.shape)


def _gradients(
    dy: torch.Tensor,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
    hidden: torch.Tensor,
    sums: tuple[torch.Tensor, torch.Tensor],
    add: bool,
) -> torch.Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    gate_up, down = gate_up.contiguous(), down.contiguous()
    layer = GroupedLayer(x, gate_up, offsets, (dy, down, *sums))
    dhidden, act = layer.activation_gradient(dy, down, hidden)
    layer.weight_gradient("down_gradient", dy, act, sums[1], add)
    del act
    dx = layer.input_gradient(dhidden, gate_up)
    layer.weight_gradient("gate_up_gradient", dhidden, x, sums[0], add)
    return dx


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, gate_up, down, offsets, _, gate_up_sum, down_sum = inputs
    ctx.mark_non_differentiable(output[1])
    # Else a gradient of zeros is made for it, as large as the pre-activations.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, gate_up, down, offsets, output[1])
    # Not saved as tensors are: another call's backward pass may have added to them in between.
    ctx.sums = None if gate_up_sum is None else (gate_up_sum, down_sum)


def _differentiate(ctx: Any, dy: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
    if ctx.sums is None:
        return (*backward(dy, *ctx.saved_tensors), None, None, None, None)
    return accumulate(dy, *ctx.saved_tensors, *ctx.sums), *[None] * 6


forward.register_autograd(_differentiate, setup_context=_keep)
