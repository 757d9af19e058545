"""Blocks by name: how a mixer and a feed-forward layer make one layer of the model."""

from .... import Registry

BLOCKS = Registry("blocks", __name__, {"pre_norm": "pre_norm:PreNorm"})
