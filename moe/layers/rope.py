"""Rotary position embedding (arXiv 2104.09864) on a fraction of each head."""

import torch


def rope_table(length: int, width: int, theta: float, device: torch.device) -> torch.Tensor:
    """Cosines and sines [length, 2, width / 2] fp32 for positions 0..length-1."""
    exponent = torch.arange(0, width, 2, device=device, dtype=torch.float32) / max(width, 1)
    position = torch.arange(length, device=device, dtype=torch.float32)
    angle = torch.outer(position, theta**-exponent)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def apply_rope(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate the first channels of `x` [B, S, H, d] by `table` [S, 2, R / 2]; the rest pass.

    Only differences of positions reach the attention scores, so positions need no reset at
    document boundaries.
    """
    half = table.shape[-1]
    if half == 0:
        return x
    cos, sin = table[:, 0].unsqueeze(1), table[:, 1].unsqueeze(1)
    first, second, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(rotated, dim=-1).to(x.dtype)
