"""Kinds of cluster: what starts, watches and ends the processes of a run."""

from .. import Registry

CLUSTERS = Registry("clusters", __package__, {"ray": "backends.ray.kind:RayKind"})
"""By the name that `cluster.launcher` gives; each is a `backend.Kind`."""
