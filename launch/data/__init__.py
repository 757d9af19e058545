"""Tokenized datasets: preparing them, and reading them in a fixed global order."""
