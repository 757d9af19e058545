"""`moelstrom kernels bench`: the kernels against peers on one GPU, correctness first."""
