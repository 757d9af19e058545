"""Feed-forward layers by the name that `model.pattern` uses."""

from .dense import DenseFFN
from .moe import MoEFFN

FFNS = {"dense": DenseFFN, "moe": MoEFFN}
