"""Which form of an operator runs: Triton on a GPU (and in Triton's interpreter), else torch."""

import os
from functools import cache

import torch

from .targets import Target, current, find

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs kernels on CPU tensors, op by op in NumPy (tests only)."""


def use_triton(x: torch.Tensor) -> bool:
    """Whether the Triton form serves `x`, of any shape and dtype."""
    return x.is_cuda or INTERPRETED


def target_of(x: torch.Tensor) -> Target:
    """The target of the GPU that holds `x` (any shape); for tensors of the interpreter, a middling
    one."""
    return find("sm90") if INTERPRETED else _target(x.get_device())


@cache
def _target(index: int) -> Target:
    return current(index)
