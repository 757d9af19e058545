"""RMSNorm (arXiv 1910.07467) fused with the residual addition before it."""

from collections.abc import Iterator

import torch

from ..forms import use_triton
from ..spec import Variant
from ..targets import Target
from . import plain


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis of `x` [..., D], in its dtype, fp32
    inside; `weight` [D]."""
    if _fused(x):
        from . import fused

        return fused.rms_norm(x, weight, eps)
    return plain.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(x + y, rms_norm(x + y))`, both [..., D], for `x`, `y` [..., D] of one dtype and `weight`
    [D]: one pass over memory."""
    if _fused(x):
        from . import fused

        return fused.add_rms_norm(x, y, weight, eps)
    return plain.add_rms_norm(x, y, weight, eps)


def scaled_add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual scaling (arXiv 2511.17127): `x' = (a1 x + b1) + (a2 y + b2)` and `rms_norm(x')`.

    `x` [..., D] the residual stream (fp32 in the paper), `y` a layer's output; `scales` [4, D] the
    rows a1, b1, a2, b2 (1, 0, 1, 0 at the start). x' has the dtype of `x`, its norm that of `y`;
    `weight` is [D].

    For blocks with learned residual scaling over an fp32 residual stream: a, b and the sum would
    otherwise be passes of their own over the widest tensor of a layer.
    """
    if _fused(x, 4096):
        from . import fused

        return fused.scaled_add_rms_norm(x, y, scales, weight, eps)
    return plain.scaled_add_rms_norm(x, y, scales, weight, eps)


def _fused(x: torch.Tensor, widest: int = 16_384) -> bool:
    # A row must fit one program's registers. Under torch.compile the plain form fuses with its
    # neighbours, which an operator would not.
    return use_triton(x) and not torch.compiler.is_compiling() and x.shape[-1] <= widest


def variants(target: Target) -> Iterator[Variant]:
    """The kernels' committed forms, for the portability gate."""
    from . import fused

    return fused.variants(target)
