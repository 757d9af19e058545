"""What one device does alone: memory, matrix products, experts, attention, host copies.

The same code runs on a CPU, CUDA and ROCm; `run.run` measures, `summary.summarise` reads.
"""
