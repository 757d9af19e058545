"""Writes a checkpoint again for another layout: plan, run, compare."""
