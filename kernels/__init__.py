"""Portable Triton kernels, a plain torch form beside each, and the gate that needs no GPU."""

import os

# Triton's own default changes in 3.10; the gate must compile what a launch does.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
