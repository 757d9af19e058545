"""Sequence mixers by the name that `model.pattern` uses."""

from .attention import Attention

MIXERS = {"attention": Attention}
