"""Expected speed of a compiled kernel, from its facts and the target's data sheet. It is a model:
on a target that was never measured it stays one.

`tiles` tiles are dealt to `C` compute units, `o` (the occupancy) at once on each. A tile alone on
its unit takes the longest of

- compute: `flops` / (peak / C), the peak scaled by what the matrix instruction can reach;
- cache: `bytes` / (cache rate / C), since every tile loads its operands from L2;
- memory: a round's tiles lie in squares of the matrix on each of the target's dies with an L2, so
  that n tiles there share rows and columns and HBM sends `bytes` / sqrt(n) for each. Kernels
  without a matrix instruction share nothing;
- latency: `steps` loads, of which (num_stages - 1) * o are under way at once (a loop of one stage
  waits for each: 1 * o).

A round of q <= o tiles on a unit takes max(q tiles, one tile + fill and drain): the first load and
the last store of a tile are hidden only by another tile on the same unit, and those of the launch
never. Rounds follow one another; the last has only the tiles left (wave quantisation).

Not modelled: the clock under a power limit (dense bf16 on an H100 sustains about 0.78 of its data
sheet), launch time, bank conflicts, skewed groups. `compare` gives what they cost as a ratio.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .compile import Facts
from .spec import Variant
from .targets import TARGETS, Target

LOAD_SECONDS = 0.7e-6
"""From a load to its data, HBM under load: the order of it on every target."""
FILL_DRAIN_SECONDS = 2 * LOAD_SECONDS
LABEL = "model"
"""Stands beside every figure from here."""


@dataclass(frozen=True)
class Estimate:
    """The modelled launch: `bound` names what a tile waits for, `rounds` the waves of tiles,
    `busy` the share of program slots in use over them."""

    operator: str
    key: str
    config: str
    target: str
    seconds: float
    flops_rate: float
    byte_rate: float
    bound: str
    rounds: int
    busy: float
    label: str = LABEL


def matrix_share(found: Facts, target: Target) -> float:
    """The share of the peak that the kernel's matrix instruction can reach.

    Warp-level MMA (HMMA) reaches 0.63 of an H100's dense peak (Luo et al., "Benchmarking and
    Dissecting the Nvidia Hopper GPU Architecture", 2024); a B200 is given the same per SM.
    """
    if target.name not in ("sm90", "sm100") or not found.instructions:
        return 1.0
    if not found.instructions[0].startswith("HMMA"):
        return 1.0
    hopper = TARGETS["sm90"]
    per_unit = 0.63 * hopper.peak_flops / hopper.compute_units
    return per_unit * target.compute_units / target.peak_flops


def estimate(variant: Variant, found: Facts, target: Target) -> Estimate | None:
    """The variant's launch on the whole target; None where it names no tiles or does not fit."""
    occupancy = found.occupancy
    if not variant.tiles or not occupancy:
        return None
    bounds = _tile_seconds(variant, found, target)
    bound = max(bounds, key=lambda name: bounds[name])
    units, tile = target.compute_units, bounds[bound]
    full, left = divmod(variant.tiles, units * occupancy)
    last = math.ceil(left / units)
    seconds = max(
        full * _round(occupancy, tile) + _round(last, tile),
        (full * occupancy + last) * tile + FILL_DRAIN_SECONDS,
    )
    rounds = full + bool(left)
    return Estimate(
        operator=variant.operator,
        key=variant.key,
        config=variant.config,
        target=target.name,
        seconds=seconds,
        flops_rate=variant.flops * variant.tiles / seconds,
        byte_rate=variant.bytes * variant.tiles / seconds,
        bound=bound,
        rounds=rounds,
        busy=variant.tiles / (rounds * units * occupancy),
    )


def _tile_seconds(variant: Variant, found: Facts, target: Target) -> dict[str, float]:
    units, occupancy = target.compute_units, found.occupancy
    together = min(variant.tiles, units * occupancy) / target.xcds
    shared = math.sqrt(max(1.0, together)) if variant.matrix else 1.0
    stages = int(variant.options.get("num_stages", 1))
    return {
        "compute": variant.flops * units / (target.peak_flops * matrix_share(found, target)),
        "cache": variant.bytes * units / target.cache_rate,
        "memory": variant.bytes * units / (target.memory_rate * shared),
        "latency": variant.steps * LOAD_SECONDS / (max(1, stages - 1) * occupancy),
    }


def _round(tiles: int, tile_seconds: float) -> float:
    return max(tiles * tile_seconds, tile_seconds + FILL_DRAIN_SECONDS) if tiles else 0.0


@dataclass(frozen=True)
class Measurement:
    """One timed launch of the shape `key`; the rate is TFLOP/s or GB/s, by `unit`."""

    operator: str
    key: str
    rate: float
    unit: str = "TFLOP/s"
    config: str | None = None
    """None: whichever config the estimates have for the shape."""


@dataclass(frozen=True)
class Ratio:
    """Measured over expected."""

    operator: str
    key: str
    unit: str
    measured: float
    expected: float

    @property
    def ratio(self) -> float:
        return self.measured / self.expected


def compare(
    measurements: Sequence[Measurement], estimates: Iterable[Estimate]
) -> tuple[list[Ratio], float]:
    """Each measurement against its estimate, and the geometric mean of the ratios.

    Every measurement must have an estimate (one target's) and every rate must be positive.
    """
    known = list(estimates)
    ratios = [_ratio(m, known) for m in measurements]
    logs = [math.log(r.ratio) for r in ratios]
    return ratios, math.exp(sum(logs) / len(logs)) if logs else math.nan


def _ratio(measurement: Measurement, estimates: list[Estimate]) -> Ratio:
    scales = {"TFLOP/s": 1e12, "GB/s": 1e9}
    if measurement.unit not in scales:
        raise ValueError(f"unit {measurement.unit}: one of {', '.join(scales)}")
    for e in estimates:
        if (e.operator, e.key) == (measurement.operator, measurement.key) and (
            measurement.config in (None, e.config)
        ):
            rate = e.flops_rate if measurement.unit == "TFLOP/s" else e.byte_rate
            expected = rate / scales[measurement.unit]
            return Ratio(e.operator, e.key, measurement.unit, measurement.rate, expected)
    raise ValueError(f"no estimate for {measurement.operator} at {measurement.key}")
