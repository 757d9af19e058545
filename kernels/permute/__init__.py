"""Row permutation for token dispatch: copies to experts' rows, and their weighted sum back."""

from collections.abc import Iterator

import torch

from ..forms import use_triton
from ..spec import Variant
from ..targets import Target
from . import plain


def gather_rows(
    x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, copies: int = 1
) -> torch.Tensor:
    """Row i of the result is row `order[i] // copies` of `x`.

    `x` [T, D]; `order` [T * copies] a permutation of the row copies, `inverse` its inverse (int32
    or int64). The backward pass gathers by `inverse` and sums each row's copies in fp32, in the
    order of the copies: no atomics, so it repeats bit for bit.
    """
    if use_triton(x):
        from . import fused

        return fused.spread_rows(x, inverse, copies)
    return plain.gather_rows(x, order, inverse, copies)


def combine_rows(
    rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Token t of the result is `sum_j weights[t, j] * rows[inverse[t * k + j]]`, summed in fp32.

    `rows` [T * k, D] in the order that `order` [T * k] put them, `inverse` undoing it; `weights`
    [T, k] floating. Returns [T, D] in the dtype of `rows`; differentiable in `rows` and `weights`.
    """
    if use_triton(rows):
        from . import fused

        return fused.reduce_rows(rows, inverse, weights.shape[1], weights)
    return plain.combine_rows(rows, order, inverse, weights)


def inverse_permutation(order: torch.Tensor) -> torch.Tensor:
    """The inverse of the permutation `order` [N]."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device, dtype=order.dtype)
    return inverse


def variants(target: Target) -> Iterator[Variant]:
    """The kernels' committed forms, for the portability gate."""
    from . import fused

    return fused.variants(target)
