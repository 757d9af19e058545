"""Newton-Schulz orthogonalisation for Muon (arXiv 2511.17127; Keller Jordan's quintic)."""

from collections.abc import Iterator

import torch

from ..forms import use_triton
from ..spec import Variant
from ..targets import Target
from . import plain


def newton_schulz(m: torch.Tensor, steps: int) -> torch.Tensor:
    """Approximate U V^T of each matrix of `m` [n, r, c] = U S V^T, in the dtype of `m`.

    `X <- aX + (bA + cA^2) X` with `A = X X^T`, on the wide side, so that A is min(r, c) square; in
    bf16 on a GPU. There A and bA + cA^2, both symmetric, are computed by upper tiles only.
    """
    if use_triton(m):
        from . import fused

        return fused.newton_schulz(m, steps)
    return plain.newton_schulz(m, steps)


def variants(target: Target) -> Iterator[Variant]:
    """The kernels' committed forms, for the portability gate."""
    from . import fused

    return fused.variants(target)
