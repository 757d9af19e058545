"""Row permutation for token dispatch: gathers forward and backward, so both are deterministic."""

import torch


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        order: torch.Tensor,
        inverse: torch.Tensor,
        copies: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies  # type: ignore[attr-defined]
        return x.index_select(0, order // copies if copies > 1 else order)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors  # type: ignore[attr-defined]
        copies: int = ctx.copies  # type: ignore[attr-defined]
        rows = grad.index_select(0, inverse)
        if copies > 1:
            rows = rows.view(-1, copies, rows.shape[-1]).sum(1)
        return rows, None, None, None


def gather_rows(
    x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, copies: int = 1
) -> torch.Tensor:
    """Row i of the result is row `order[i] // copies` of `x`.

    `x` [N, D]; `order` [N * copies] a permutation of the N * copies row copies, `inverse` its
    inverse. The backward pass gathers by `inverse` and sums the copies, where autograd's own
    index backward would scatter with atomics on a GPU.
    """
    return _GatherRows.apply(x, order, inverse, copies)


def inverse_permutation(order: torch.Tensor) -> torch.Tensor:
    """The inverse of the permutation `order` [N] int64."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return inverse
