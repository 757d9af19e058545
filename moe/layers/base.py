"""What every sequence mixer gets besides its input."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Context:
    """Per-batch values that all layers share.

    `documents` [B, S] int32; `mask`: what attention takes to stay causal and inside a document (a
    boolean [B, 1, S, S] on CPU, a FlexAttention block mask on GPUs); `rope` [S, 2, R / 2] fp32,
    cosines and sines.
    """

    documents: torch.Tensor
    mask: Any
    rope: torch.Tensor
