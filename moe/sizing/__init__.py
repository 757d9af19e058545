"""Sizes and costs of a model, from its configuration alone."""
