"""What a device does over the sizes of its work: measured, or modelled from a data sheet.

A product's rate follows a trend, the roofline with a top of best F / (F + H) for F FLOPs: a launch
has a cost, and little work fills few units. H is fitted. Between measured points the trend is
corrected by the points around: by the geometric mean of measured over trend, weighted by the
inverse fourth power of the distance in the logarithms of the sizes, so that the nearest decide. At
a measured point the rate is the measured one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from ... import UserError
from ...kernels.targets import Target

Number = TypeVar("Number", float, np.ndarray)

CAPACITY = {
    "gfx90a": 64 * 2**30,
    "gfx942": 192 * 2**30,
    "gfx950": 288 * 2**30,
    "sm80": 80 * 2**30,
    "sm90": 80 * 2**30,
    "sm100": 180 * 2**30,
}
"""HBM of one device by the vendors' data sheets, for the products of `kernels.targets`."""

SUSTAINED = 0.78
"""Of the peak that dense bf16 products sustain: an H100's figure (kernels.roofline), our assumption
for other devices."""
GROUPED = 0.7
"""Of dense products' rate that grouped experts reach, forward and backward: an H100's figure
(kernels/results), our assumption for other devices."""
ATTENTION = 0.6
"""Of the peak that attention reaches on long sequences; our assumption."""
STREAM = 0.88
"""Of the data sheet's memory rate that a copy reaches (H100: 2.97 of 3.35 TB/s)."""
NEAR_PEAK_FLOPS = 200e9
"""Of a product that runs near the peak (arXiv 2511.17127: about 200 GFLOP)."""
HALF_LENGTH = 1024
"""Tokens at which attention has half its rate: 0.8 to 0.94 of it at 4k to 16k (arXiv 2511.17127:
compute-bound from there on)."""


@dataclass(frozen=True)
class Points:
    """Rates measured over sizes: `sizes` [points, dimensions], `rates` and `trend` [points]."""

    sizes: np.ndarray
    rates: np.ndarray
    trend: np.ndarray

    @cached_property
    def _logs(self) -> np.ndarray:
        return np.log2(self.sizes)

    def rate(self, sizes: Sequence[float], trend: float) -> float:
        """The rate at one point, of which the trend says `trend`."""
        distance = ((self._logs - np.log2(sizes)) ** 2).sum(1)
        if distance.min() < 1e-12:
            return float(self.rates[distance.argmin()])
        weights = distance**-2.0
        shares = np.log(self.rates / self.trend)
        return trend * float(np.exp((weights * shares).sum() / weights.sum()))


@dataclass(frozen=True)
class Gemm:
    """A timed product [m, k] x [n, k]^T in FLOP/s."""

    m: int
    n: int
    k: int
    rate: float


@dataclass(frozen=True)
class Grouped:
    """Timed SwiGLU experts, forward and backward, in FLOP/s."""

    rows: int
    hidden: int
    width: int
    experts: int
    rate: float


@dataclass(frozen=True)
class Curves:
    """A device. `attention` holds (sequence length, FLOP/s) of forward + backward, FLOPs counted
    as 3.5 x the forward pass; `memory_rate` is bytes/s that a stream moves; `capacity` bytes;
    `peak` FLOP/s, what MFU is a share of. Every list has a point or more."""

    label: str
    gemms: tuple[Gemm, ...]
    experts: tuple[Grouped, ...]
    attention: tuple[tuple[int, float], ...]
    memory_rate: float
    capacity: int
    peak: float
    near_peak_flops: float = NEAR_PEAK_FLOPS
    measured: bool = False

    def gemm(self, m: int, n: int, k: int) -> float:
        """FLOP/s of one product in bf16."""
        rate = self._gemm.rate((m, n, k), float(self._trend(m, n, k)))
        return min(rate, self.best, self._stream(m, n, k))

    def grouped(self, rows: int, hidden: int, width: int, experts: int) -> float:
        """FLOP/s of grouped experts: what dense products of all rows would have, times the share
        of that which the measured experts have."""
        dense = self.chain(rows, hidden, width)
        each = rows / experts
        return self._grouped.rate((each, hidden, width), dense)

    def attend(self, length: int) -> float:
        """FLOP/s of causal attention over `length` tokens."""
        lengths, rates = (np.array(column, float) for column in zip(*self.attention, strict=True))
        return float(np.interp(np.log2(length), np.log2(lengths), rates))

    @cached_property
    def best(self) -> float:
        """The fastest product's FLOP/s."""
        return max(g.rate for g in self.gemms)

    def _stream(self, m: Number, n: Number, k: Number) -> Number:
        """The rate at which memory feeds a product in bf16."""
        return self.memory_rate * (m * n * k) / (m * k + n * k + m * n)

    def _trend(self, m: Number, n: Number, k: Number) -> np.ndarray:
        return np.minimum(_filling(self.best, self._half, 2.0 * m * n * k), self._stream(m, n, k))

    @cached_property
    def _half(self) -> float:
        """FLOPs of a product at half of the best rate: least squares of the logarithms."""
        m, n, k, rates = self._columns
        stream = self._stream(m, n, k)

        def miss(half: float) -> float:
            trend = np.minimum(_filling(self.best, half, 2 * m * n * k), stream)
            return float((np.log(rates / trend) ** 2).sum())

        return float(min(np.logspace(3, 13, 201), key=miss))

    @cached_property
    def _columns(self) -> np.ndarray:
        return np.array([(g.m, g.n, g.k, g.rate) for g in self.gemms], float).T

    def chain(self, rows: int, hidden: int, width: int) -> float:
        """FLOP/s of gate, up and down as dense products of all rows."""
        up, down = self.gemm(rows, 2 * width, hidden), self.gemm(rows, hidden, width)
        return 3 / (2 / up + 1 / down)

    @cached_property
    def _gemm(self) -> Points:
        *sizes, rates = self._columns
        return Points(np.array(sizes).T, rates, self._trend(*sizes))

    @cached_property
    def _grouped(self) -> Points:
        sizes = np.array([(g.rows / g.experts, g.hidden, g.width) for g in self.experts])
        trend = [self.chain(g.rows, g.hidden, g.width) for g in self.experts]
        return Points(sizes, np.array([g.rate for g in self.experts]), np.array(trend))


def _filling(top: float, half: float, flops: Number) -> Number:
    """The rate of products of `flops` where launching and filling the device costs `half`."""
    return top * flops / (flops + half)


@dataclass(frozen=True)
class Sheet(Curves):
    """A model of a device, its products by the trend alone: 0.9 of the best at
    `NEAR_PEAK_FLOPS`."""

    def gemm(self, m: int, n: int, k: int) -> float:
        """FLOP/s of one product in bf16."""
        flops = 2.0 * m * n * k
        return min(_filling(self.best, self.near_peak_flops / 9, flops), self._stream(m, n, k))


def data_sheet(target: Target) -> Curves:
    """A model of `target` from its data sheet and the constants above, labelled so.

    UserError for a GPU whose memory is not listed here.
    """
    if target.name not in CAPACITY:
        raise UserError(f"target {target.name}: choose from {', '.join(CAPACITY)}")
    top, side = SUSTAINED * target.peak_flops, 2**14
    lengths = [2**i for i in range(7, 20)]
    whole = Sheet(
        label=f"model from the data sheet of {target.product}, nothing measured",
        gemms=(Gemm(side, side, side, top),),
        experts=(),
        attention=tuple(
            (s, _filling(ATTENTION * target.peak_flops, HALF_LENGTH, s)) for s in lengths
        ),
        memory_rate=STREAM * target.memory_rate,
        capacity=CAPACITY[target.name],
        peak=target.peak_flops,
    )
    rows, hidden, width, experts = 131072, 2048, 1024, 64
    rate = GROUPED * whole.chain(rows, hidden, width)
    return replace(whole, experts=(Grouped(rows, hidden, width, experts, rate),))
