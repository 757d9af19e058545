"""Sequence mixers by the name that a layer's `mixer` and `model.pattern` use."""

from .... import Registry

MIXERS = Registry("mixers", __name__, {"attention": "attention:Attention"})
