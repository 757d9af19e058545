"""Benchmark runs: their config, their worker under any launcher, and what is made of the result."""
