"""Kinds of cluster: what starts, watches and ends the processes of a run."""

from ... import Registry

CLUSTERS = Registry("clusters", __name__, {"ray": "ray.kind:RayKind"})
"""By the name that `cluster.launcher` gives; each is a `base.Kind`."""
