"""What to measure of a device."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..sizes import Bytes
from . import PROBES

Positive = Annotated[int, Field(ge=1)]
Access = Literal["copy", "scale", "triad", "read", "write"]
Dtype = Literal["bf16", "fp16", "fp32"]
Gemm = tuple[Positive, Positive, Positive]

MEMORY_SETS = 4
"""A working set of so many last-level caches shows the memory (our choice; STREAM asks it of each
array)."""

_SQUARES = (256, 512, 1024, 2048, 4096, 8192, 16384)
_DEPTHS = (1024, 7168)
_SIDES = (512, 1024, 2048, 4096, 8192, 16384)
GPU_GEMMS: tuple[Gemm, ...] = (
    *((n, n, n) for n in _SQUARES),
    *((n, n, k) for k in _DEPTHS for n in _SIDES if n != k),
)
"""Squares, and M = N at the two K of the paper's statements (arXiv 2511.17127: K = 1024 needs large
M and N; K = 7168 is at its peak from M, N >= 512)."""
CPU_GEMMS: tuple[Gemm, ...] = tuple((n, n, n) for n in (128, 256, 512, 1024, 2048))


class HardwareConfig(BaseModel):
    """Unknown fields are errors; None takes the device's default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    benches: tuple[str, ...] = Field(default_factory=lambda: (*PROBES,))
    budget_s: Annotated[float, Field(gt=0, le=60)] = 0.3
    """Seconds of timed calls for each measurement (at least 5 samples, whatever they take)."""
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of the free memory that one measurement may take; larger ones are skipped."""

    min_bytes: Bytes = 64 * 1024
    """Of one buffer, for `memory` and `copy`."""
    max_bytes: Bytes | None = None
    """None: 8 GiB (GPU; host copies 1 GiB), 256 MiB (CPU), for `memory` more where `least_set` asks
    it."""
    least_set: Bytes | None = None
    """What the largest buffer of `memory` holds at least, unless max_bytes is given; None:
    MEMORY_SETS times the largest last-level cache of all ranks' devices."""
    factor: Annotated[int, Field(ge=2)] = 4
    """From one buffer size to the next."""
    kinds: tuple[Access, ...] = ("copy", "scale", "triad", "read", "write")

    gemm_shapes: tuple[Gemm, ...] | None = None
    """(M, N, K) of [M, K] x [N, K]^T."""
    gemm_dtypes: tuple[Dtype, ...] = ("bf16", "fp32")
    model_shapes: tuple[tuple[str, Positive, Positive, Positive], ...] = ()
    """(name, M, N, K) of a model's products, in the first dtype."""
    expert_shapes: tuple[tuple[Positive, Positive, Positive, Positive], ...] | None = None
    """(rows, hidden, expert width, experts) of a grouped SwiGLU layer, rows spread evenly."""

    seq_lens: tuple[Positive, ...] | None = None
    heads: Positive = 8
    kv_heads: Positive = 2
    head_dim: Positive = 128

    @field_validator("benches")
    @classmethod
    def _check_benches(cls, benches: tuple[str, ...]) -> tuple[str, ...]:
        for name in benches:
            if name not in PROBES:
                raise ValueError(f"{name!r}: give some of {', '.join(PROBES)}")
        return benches

    @model_validator(mode="after")
    def _check(self) -> "HardwareConfig":
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads is {self.kv_heads}, which does not divide heads {self.heads}: every KV "
                "head serves the same number of query heads"
            )
        if self.max_bytes is not None and self.max_bytes < self.min_bytes:
            raise ValueError(
                f"max_bytes is {self.max_bytes}, below min_bytes {self.min_bytes}: raise it"
            )
        for rows, hidden, width, experts in self.expert_shapes or ():
            if hidden % 8 or width % 8 or rows < experts:
                raise ValueError(
                    f"expert_shapes {rows, hidden, width, experts}: give widths that are multiples "
                    "of 8 and a row or more for each expert"
                )
        return self

    def sizes(self, device: torch.device, host: bool = False) -> list[int]:
        """Buffer sizes in ascending order; `host` for copies between host and device."""
        default = 2**28 if device.type == "cpu" else 2**30 if host else 2**33
        limit = self.max_bytes or max(default, self.min_bytes)
        least = 0 if self.max_bytes or host else self.least_set or 0
        sizes = [self.min_bytes]
        while sizes[-1] * self.factor <= limit or sizes[-1] < least:
            sizes.append(sizes[-1] * self.factor)
        return sizes

    def gemms(self, device: torch.device) -> tuple[Gemm, ...]:
        """The sweep's (M, N, K)."""
        if self.gemm_shapes is not None:
            return self.gemm_shapes
        return CPU_GEMMS if device.type == "cpu" else GPU_GEMMS

    def experts(self, device: torch.device) -> tuple[tuple[int, int, int, int], ...]:
        """The experts' shapes: on a GPU ZAYA1's (arXiv 2511.17127) and two finer ones."""
        if self.expert_shapes is not None:
            return self.expert_shapes
        if device.type == "cpu":
            return ((2048, 256, 256, 8),)
        return (16384, 2048, 2048, 16), (131072, 2048, 1024, 64), (131072, 2048, 768, 128)

    def lengths(self, device: torch.device) -> tuple[int, ...]:
        """Sequence lengths of attention."""
        if self.seq_lens is not None:
            return self.seq_lens
        return tuple(2**i for i in (range(7, 12) if device.type == "cpu" else range(9, 17)))
