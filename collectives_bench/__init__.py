"""Measuring a cluster's network and devices, and what the measurements say."""

THRESHOLD = 0.10
"""Share of a time by which a measurement must differ to count as changed, by default."""
