"""Row permutation in plain torch: gathers forward and backward, so both are deterministic."""

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
    """Rows `order // copies` of `x` [T, D]: [T * copies, D], `order` and `inverse` [T * copies]
    int.

    Autograd's own backward of the gather would scatter with atomics on a GPU.
    """
    return _GatherRows.apply(x, order, inverse, copies)


def combine_rows(
    rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted sums over each token's copies, in fp32: `rows` [T * k, D], `order`, `inverse` [T *
    k] int, `weights` [T, k] floating; returns [T, D] in the dtype of `rows`."""
    copies = gather_rows(rows, inverse, order).unflatten(0, weights.shape)
    return (copies.float() * weights.float().unsqueeze(-1)).sum(1).to(rows.dtype)
