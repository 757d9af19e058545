"""The polynomial both forms iterate."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic of Keller Jordan's Muon: fast to about 1, not exact."""
