"""What every feed-forward layer returns."""

from typing import NamedTuple

import torch


class FFNOutput(NamedTuple):
    """`y` [B, S, D]; `aux` scalar fp32, balancing losses summed over sequences; `counts` [E]
    int64, tokens sent to each expert by this rank (None where there are no experts)."""

    y: torch.Tensor
    aux: torch.Tensor
    counts: torch.Tensor | None
