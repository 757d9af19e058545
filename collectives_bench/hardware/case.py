"""One measurement to make, and the time of its calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

import torch

Call = Callable[[], object]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROTATION_BYTES = 512 * 2**20
"""The most that operands take to be out of the cache when their turn comes again."""


@dataclass(frozen=True)
class Probe:
    """`make` allocates the operands and returns the call; `bytes` is what that takes of the
    device's memory, `work` what one call moves (bytes) or computes (FLOPs), by `unit`."""

    bench: str
    kind: str
    dtype: str
    shape: dict[str, int]
    bytes: int
    work: float
    unit: Literal["B/s", "FLOP/s"]
    make: Callable[[], Call]

    @property
    def name(self) -> str:
        """For people: `gemm sweep bf16 M 512 N 512 K 512`."""
        sizes = " ".join(f"{key} {value}" for key, value in self.shape.items())
        return f"{self.bench} {self.kind} {self.dtype} {sizes}"


def rotations(operand_bytes: int, device: torch.device) -> int:
    """How many sets of operands it takes until the first has left the cache: two caches' worth, as
    a layer's weights and activations come from memory in training."""
    wanted = -(-2 * cache_bytes(device) // max(operand_bytes, 1)) + 1
    return max(1, min(wanted, ROTATION_BYTES // max(operand_bytes, 1), 64))


def rotate(calls: Sequence[Call]) -> Call:
    """A call of each in turn."""
    if len(calls) == 1:
        return calls[0]
    turn = cycle(calls)
    return lambda: next(turn)()


def cache_bytes(device: torch.device) -> int:
    """The last cache before memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii")
        return int(text.strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 * 2**20
