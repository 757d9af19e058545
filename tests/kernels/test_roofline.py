"""The roofline against launches worked out by hand, and its direction where they cannot be."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from moelstrom import kernels
from moelstrom.kernels.bench.modelled import beside
from moelstrom.kernels.compile import Facts
from moelstrom.kernels.roofline import (
    FILL_DRAIN_SECONDS,
    LOAD_SECONDS,
    Measurement,
    compare,
    estimate,
    matrix_share,
)
from moelstrom.kernels.spec import Variant
from moelstrom.kernels.targets import TARGETS, Target

RESULTS = Path(kernels.__file__).parent / "results"
# A cache that never binds, but where it is the subject.
SM90 = replace(TARGETS["sm90"], cache_rate=1e15)
FACTS = Facts(
    shared=200_000,
    threads=256,
    registers=168,
    agprs=0,
    spills=0,
    scalar_spills=0,
    scratch=0,
    tensor_columns=0,
    occupancy=1,
    instructions=("HGMMA.64x256x16.F32.BF16",),
    matrix_in_loop=True,
    loads=(),
    fp8=(),
)
M, N, K = 128, 256, 2048
# No roofline reads the kernel itself.
GEMM = Variant(
    "gemm",
    None,
    {},
    {},
    options={"num_stages": 4},
    key="d2048",
    matrix=True,
    flops=2 * M * N * K,
    bytes=2 * (M * K + N * K + M * N),
    tiles=132,
    steps=K // 64,
)


def _seconds(variant: Variant, facts: Facts = FACTS, target: Target = SM90) -> float:
    found = estimate(variant, facts, target)
    assert found is not None
    return found.seconds


def test_one_wave_of_a_compute_bound_gemm() -> None:
    found = estimate(GEMM, FACTS, SM90)
    assert found is not None
    tile = GEMM.flops / (SM90.peak_flops / 132)
    assert found.bound == "compute" and (found.rounds, found.busy) == (1, 1.0)
    assert found.seconds == pytest.approx(tile + FILL_DRAIN_SECONDS)
    assert found.flops_rate == pytest.approx(132 * GEMM.flops / found.seconds)
    assert found.flops_rate < SM90.peak_flops


def test_operands_from_l2_bound_a_gemm() -> None:
    found = estimate(GEMM, FACTS, replace(SM90, cache_rate=5e12))
    assert found is not None and found.bound == "cache"
    assert found.seconds == pytest.approx(GEMM.bytes * 132 / 5e12 + FILL_DRAIN_SECONDS)


def test_wave_quantisation() -> None:
    one, two = _seconds(GEMM), _seconds(replace(GEMM, tiles=133))
    assert two == pytest.approx(2 * one)
    assert _seconds(replace(GEMM, tiles=264)) == pytest.approx(two)


def test_a_second_resident_tile_hides_fill_and_drain_between_rounds() -> None:
    many = replace(GEMM, tiles=132 * 12)
    tile = GEMM.flops / (SM90.peak_flops / 132)
    assert _seconds(many) == pytest.approx(12 * (tile + FILL_DRAIN_SECONDS))
    two = _seconds(many, replace(FACTS, occupancy=2))
    assert two == pytest.approx(12 * tile + FILL_DRAIN_SECONDS)


def test_a_copy_is_bound_by_memory() -> None:
    copy = replace(GEMM, matrix=False, flops=0, bytes=2**20, tiles=13_200, steps=0)
    found = estimate(copy, replace(FACTS, occupancy=8), SM90)
    assert found is not None and found.bound == "memory"
    assert found.byte_rate == pytest.approx(SM90.memory_rate, rel=0.01)


def test_latency_bounds_a_short_pipeline() -> None:
    narrow = replace(GEMM, flops=GEMM.flops / 64, bytes=GEMM.bytes / 64, options={"num_stages": 1})
    found = estimate(narrow, FACTS, SM90)
    assert found is not None and found.bound == "latency"
    assert found.seconds == pytest.approx(32 * LOAD_SECONDS + FILL_DRAIN_SECONDS)
    assert _seconds(replace(narrow, options={"num_stages": 3})) < found.seconds


def test_dies_share_less() -> None:
    target, wide = TARGETS["gfx942"], replace(GEMM, flops=1, tiles=304)
    one_die = replace(target, xcds=1)
    assert _seconds(wide, target=target) > _seconds(wide, target=one_die)


def test_warp_level_mma_is_slower_on_hopper() -> None:
    slow = replace(FACTS, instructions=("HMMA.16816.F32.BF16",))
    assert matrix_share(slow, SM90) == pytest.approx(0.63)
    assert matrix_share(slow, TARGETS["sm80"]) == matrix_share(FACTS, SM90) == 1.0
    assert 0.2 < matrix_share(slow, TARGETS["sm100"]) < 0.63


def test_nothing_to_model() -> None:
    assert estimate(replace(GEMM, tiles=0), FACTS, SM90) is None
    assert estimate(GEMM, replace(FACTS, occupancy=0), SM90) is None


def test_compare() -> None:
    expected = [estimate(replace(GEMM, key=key), FACTS, SM90) for key in ("a", "b")]
    known = [e for e in expected if e]
    tera = known[0].flops_rate / 1e12
    measured = [Measurement("gemm", "a", tera / 2), Measurement("gemm", "b", tera / 8)]
    ratios, mean = compare(measured, known)
    assert [r.ratio for r in ratios] == pytest.approx([0.5, 0.125])
    assert mean == pytest.approx(0.25)
    giga = Measurement("gemm", "a", known[0].byte_rate / 1e9, "GB/s")
    assert compare([giga], known)[1] == pytest.approx(1)
    assert math.isnan(compare([], known)[1])
    with pytest.raises(ValueError, match="no estimate for gemm at c"):
        compare([Measurement("gemm", "c", 1.0)], known)
    with pytest.raises(ValueError, match="unit GFLOP"):
        compare([Measurement("gemm", "a", 1.0, "GFLOP/s")], known)


def test_the_model_against_the_h100() -> None:
    tuned = json.loads((RESULTS / "h100-tune.json").read_text())
    tuned["timings"] = [row for row in tuned["timings"] if row["key"] == "d2048_f2048"]
    ratios, mean = beside(tuned)
    assert len(ratios) == 6
    assert 0.85 < mean < 1.1
    assert all(0.7 < r.ratio < 1.2 for r in ratios)
