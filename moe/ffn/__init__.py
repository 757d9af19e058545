"""Feed-forward layers by the name that `model.pattern` uses."""

from .moe import MoEFFN
from .swiglu import DenseFFN

FFNS = {"dense": DenseFFN, "moe": MoEFFN}
