"""Copies of the newest checkpoint in the memory of other nodes."""
