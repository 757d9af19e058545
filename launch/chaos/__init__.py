"""Faults on purpose: scenarios, their injector, and what a run made of them."""
