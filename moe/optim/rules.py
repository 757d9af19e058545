"""Which parameter gets which update."""

from ..config import OptimizerConfig
from ..spec import Spec

STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum",)}
"""The fp32 tensors that each update rule keeps beside a parameter's master weights."""


def rule(spec: Spec, config: OptimizerConfig) -> str:
    """`muon` for the matrices inside the blocks, experts included, when chosen; else `adamw`."""
    return "muon" if config.name == "muon" and spec.update == "matrix" else "adamw"
