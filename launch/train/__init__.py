"""A training run: its loop, records, health, and what a person sees of it."""
