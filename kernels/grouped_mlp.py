"""The SwiGLU experts' computation over ragged groups of tokens.

Today's form is `torch.nn.functional.grouped_mm`; a Triton form takes its place on GPUs.
"""

import torch
from torch.nn import functional as F


def grouped_mlp(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Run each expert's SwiGLU MLP on its own run of rows.

    `x` [N, D] sorted by expert; `gate_up` [E, 2F, D] (gate rows first); `down` [E, D, F];
    `offsets` [E] int32, the end of each expert's rows (the last is N). Returns [N, D] in the dtype
    of `x`. Rows and widths are multiples of 16 bytes; experts may be empty.
    """
    hidden = F.grouped_mm(x, gate_up.transpose(-2, -1), offs=offsets)
    gate, up = hidden.chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up, down.transpose(-2, -1), offs=offsets)


def grouped_mlp_reference(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """The same by a plain loop over experts (arguments as `grouped_mlp`)."""
    parts, start = [], 0
    for expert, end in enumerate(offsets.tolist()):
        gate, up = (x[start:end] @ gate_up[expert].T).chunk(2, dim=-1)
        parts.append((F.silu(gate) * up) @ down[expert].T)
        start = end
    return torch.cat(parts)
