"""Routers by name: which experts each token goes to."""

from .... import Registry

ROUTERS = Registry("routers", __name__, {"top_k": "top_k:TopK"})
