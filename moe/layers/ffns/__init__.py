"""Feed-forward layers by the name that a layer's `ffn` and `model.pattern` use."""

from .... import Registry

FFNS = Registry("ffns", __name__, {"dense": "dense:Dense", "moe": "moe:MoE"})
