"""Which parameter gets which update."""

import torch

from ..config import OptimizerConfig


def rule(name: str, parameter: torch.Tensor, config: OptimizerConfig) -> str:
    """`muon` for the matrices inside the blocks, experts included, when chosen; else `adamw`."""
    hidden = name.startswith("layers.") and parameter.ndim >= 2
    return "muon" if config.name == "muon" and hidden else "adamw"


def decays(parameter: torch.Tensor) -> bool:
    """Weight decay acts on matrices, not on norms."""
    return parameter.ndim >= 2


def matrix_shape(parameter: torch.Tensor) -> tuple[int, int]:
    """(rows, columns) of the matrices stacked in a parameter.

    Gate and up projections share one tensor but are two matrices (`matrix_rows` marks it).
    """
    rows: int = getattr(parameter, "matrix_rows", parameter.shape[-2])
    return rows, parameter.shape[-1]
