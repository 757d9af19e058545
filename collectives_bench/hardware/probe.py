"""What a kind of measurement is, one measurement to make, and operands that leave the cache."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import torch

from ..caches import cache_bytes
from ..schema import Hardware
from .config import HardwareConfig

Call = Callable[[], object]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROTATION_BYTES = 512 * 2**20
"""The most that operands take to be out of the cache when their turn comes again."""
USUAL_CACHE = 32 * 2**20
"""Where the system does not tell the cache's size."""


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


@dataclass(frozen=True)
class Curve:
    """How rows are drawn: `x` places a row on an axis of bytes, of a count, or of powers of two.

    Kinds that name the same curve share it.
    """

    name: str
    title: str
    axis: Literal["bytes", "count", "power"]
    label: str
    x: Callable[[Hardware], float]


Summarise = Callable[[list[Hardware], Mapping[str, Any]], Any]


@dataclass(frozen=True)
class ProbeKind:
    """One kind of measurement: all that the run, the summary and the plots know of it."""

    probes: Callable[[HardwareConfig, torch.device], Iterator[Probe]]
    """What to measure of a device, in order."""
    sizes: tuple[str, ...]
    """What a row's `shape` must name for its readers; it may hold more."""
    summarise: Summarise
    """JSON values out of one rank's rows and the summary so far: the kinds before by name, and
    `cache`, the bytes of the device's last cache (0: not known)."""
    curve: Curve


def best_rates(rows: list[Hardware], found: Mapping[str, Any]) -> dict[str, float]:
    """The simplest summary: each sort's best rate."""
    best: dict[str, float] = {}
    for row in rows:
        best[row.kind] = max(row.rate, best.get(row.kind, 0.0))
    return best


def grouped(rows: list[Hardware], key: str) -> dict[str, list[Hardware]]:
    """Rows by one of their fields."""
    groups: dict[str, list[Hardware]] = {}
    for row in rows:
        groups.setdefault(getattr(row, key), []).append(row)
    return groups


def flops(row: Hardware) -> float:
    """Of one call."""
    return row.rate * row.p50_s if row.unit == "FLOP/s" else 0.0


def rotations(operand_bytes: int, device: torch.device) -> int:
    """How many sets of operands it takes until the first has left the cache: two caches' worth, as
    a layer's weights and activations come from memory in training."""
    wanted = -(-2 * (cache_bytes(device) or USUAL_CACHE) // max(operand_bytes, 1)) + 1
    return max(1, min(wanted, ROTATION_BYTES // max(operand_bytes, 1), 64))


def rotate(calls: Sequence[Call]) -> Call:
    """A call of each in turn."""
    if len(calls) == 1:
        return calls[0]
    turn = cycle(calls)
    return lambda: next(turn)()
