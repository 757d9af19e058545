"""Budgets against figures worked out by hand, and what is chosen from them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.kernels import tuning
from moelstrom.kernels.targets import TARGETS, current, find
from moelstrom.kernels.tuning import committed, matmul_tile, split, tuned

NAMES = st.sampled_from(sorted(TARGETS))


# Data sheets (MI250X: one die): dense bf16 TFLOP/s, HBM TB/s, and the boost clock in GHz that the
# first is given at (B200's is not published).
RATES: dict[str, tuple[float, float, float | None]] = {
    "gfx90a": (191.5, 1.6, 1.7),
    "gfx942": (1307.4, 5.3, 2.1),
    "gfx950": (2516.6, 8.0, 2.4),
    "sm80": (312, 2.039, 1.41),
    "sm90": (989.4, 3.35, 1.83),
    "sm100": (2250, 8.0, None),
}


@pytest.mark.parametrize("name", TARGETS)
def test_rates_are_the_data_sheets(name: str) -> None:
    target, (flops, memory, clock) = find(name), RATES[name]
    assert target.peak_flops == flops * 1e12
    assert target.memory_rate == pytest.approx(memory * 1e12)
    if clock is not None:
        # At that clock a compute unit does a power of two of bf16 multiply-adds.
        each = target.peak_flops / target.compute_units / (clock * 1e9) / 2
        assert each == pytest.approx(2 ** round(math.log2(each)), rel=0.01)


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "programs"),
    [
        # 65,536 registers: 8 warps of 32 x 128 take half, of 136 a little more than half.
        ("sm80", 256, 128, 0, 2),
        ("sm80", 256, 136, 0, 1),
        ("sm80", 256, 254, 0, 1),
        ("sm90", 128, 32, 0, 16),
        ("sm90", 1024, 64, 0, 1),
        ("sm90", 1024, 72, 0, 0),
        # 227 KiB for one program; two of 113 KiB and their reserved KiB fill 228.
        ("sm90", 128, 64, 232_448, 1),
        ("sm90", 128, 64, 232_449, 0),
        ("sm90", 128, 64, 113 * 1024, 2),
        ("sm90", 128, 64, 113 * 1024 + 1, 1),
        # 512 registers a lane of each of 4 SIMDs: 4 waves of 128 each, 8 at most.
        ("gfx942", 256, 128, 0, 4),
        ("gfx942", 256, 129, 0, 3),
        ("gfx942", 256, 512, 0, 1),
        ("gfx942", 512, 512, 0, 0),
        ("gfx942", 256, 16, 0, 8),
        ("gfx942", 256, 64, 32_768, 2),
        ("gfx942", 2048, 16, 0, 0),
        ("gfx950", 256, 64, 65_537, 2),
    ],
)
def test_occupancy(target: str, threads: int, registers: int, shared: int, programs: int) -> None:
    assert find(target).occupancy(threads, registers, shared) == programs


def test_tensor_memory_limits_occupancy() -> None:
    assert find("sm100").occupancy(128, 32, 0, 256) == 2
    assert find("sm100").occupancy(128, 32, 0, 1024) == 0


@given(NAMES, st.integers(0, 5), st.integers(1, 255), st.integers(0, 240_000), st.integers(1, 64))
def test_occupancy_falls_with_use(
    name: str, log_warps: int, registers: int, shared: int, more: int
) -> None:
    target, threads = TARGETS[name], TARGETS[name].warp_size << log_warps
    programs = target.occupancy(threads, registers, shared)
    assert programs * threads <= target.warps * target.warp_size
    assert programs * shared <= target.unit_shared_bytes
    assert programs * threads * registers <= target.registers
    assert target.occupancy(threads, registers + more, shared) <= programs
    assert target.occupancy(threads, registers, shared + more) <= programs


@given(NAMES, st.integers(1, 2), st.sampled_from([1, 2, 4]))
def test_chosen_tile_is_within_budget(name: str, accumulators: int, element_bytes: int) -> None:
    target = TARGETS[name]
    tile = matmul_tile(target, accumulators, element_bytes)
    m, n, k = tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_K"]
    stage = (m + accumulators * n) * k * element_bytes
    assert target.pipeline_bytes(stage, tile["num_stages"]) <= target.shared_bytes
    held = accumulators * m * n // (tile["num_warps"] * target.warp_size)
    assert held < target.thread_registers
    assert tile["num_warps"] <= target.max_warps


def test_unknown_target() -> None:
    with pytest.raises(UserError, match="target sm70: not known; one of gfx90a"):
        find("sm70")


def _gpu(monkeypatch: pytest.MonkeyPatch, hip: str | None, **properties: object) -> None:
    found = SimpleNamespace(name="a GPU", multi_processor_count=100, **properties)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.version, "hip", hip)


def test_current_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch, "7.0", gcnArchName="gfx942:sramecc+:xnack-")
    target = current()
    assert (target.name, target.warp_size, target.compute_units) == ("gfx942", 64, 100)
    assert target.shared_bytes == 65_536


def test_current_nvidia_outside_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch, None, major=8, minor=9, shared_memory_per_block_optin=101_376)
    target = current()
    assert (target.name, target.shared_bytes) == ("sm89", 101_376)
    assert not target.tensor_descriptors
    tile = matmul_tile(target)
    stage = (tile["BLOCK_M"] + tile["BLOCK_N"]) * tile["BLOCK_K"] * 2
    assert stage * tile["num_stages"] <= 101_376


@pytest.mark.parametrize(
    "properties", [{"major": 7, "minor": 5}, {"hip": "7.0", "gcnArchName": "gfx1100"}]
)
def test_current_refuses_what_the_kernels_do_not_serve(
    monkeypatch: pytest.MonkeyPatch, properties: dict[str, object]
) -> None:
    _gpu(monkeypatch, **{"hip": None, **properties})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the kernels need gfx90a"):
        current()


def test_tuned_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"BLOCK_M": 256, "num_warps": 8}
    configs = {"op": {"d2048": wide, "*": {"BLOCK_M": 64}}}
    monkeypatch.setattr(tuning, "_file", {"sm90": configs, "sm80": {}}.__getitem__)
    default = {"BLOCK_M": 128, "BLOCK_N": 128}
    assert tuned("op", find("sm90"), "d2048", default) == {**wide, "BLOCK_N": 128}
    assert tuned("op", find("sm90"), "d512", default) == {"BLOCK_M": 64, "BLOCK_N": 128}
    assert tuned("op", find("sm80"), "d2048", default) == default
    assert committed("op", find("sm90")) == configs["op"]
    assert split(wide) == ({"BLOCK_M": 256}, {"num_warps": 8})


@pytest.mark.parametrize("name", [name for name in TARGETS if name.startswith("sm")])
def test_current_nvidia_is_its_own_entry(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Not an older one's; and a newer GPU without an entry takes it."""
    major, minor = divmod(int(name[2:]), 10)
    for newer in (0, 1):
        _gpu(monkeypatch, None, major=major, minor=minor + newer)
        target, entry = current(), TARGETS[name]
        assert target.name == f"sm{major}{minor + newer}"
        expected = replace(entry, name=target.name, product="a GPU", compute_units=100)
        assert target == expected


SHEETS = {
    # Shared memory of a program and of a unit in KiB (1 KiB of NVIDIA's is reserved), compute
    # units, XCDs, KiB of registers, columns of tensor memory, TB/s of all of L2.
    "gfx90a": (64, 64, 110, 1, 512, 0, 7.0),
    "gfx942": (64, 64, 304, 8, 512, 0, 34.4),
    "gfx950": (160, 160, 256, 8, 512, 0, 39.3),
    "sm80": (163, 164, 108, 1, 256, 0, 7.2),
    "sm90": (227, 228, 132, 1, 256, 0, 9.4),
    "sm100": (227, 228, 148, 1, 256, 512, 19.6),
}


@pytest.mark.parametrize("name", TARGETS)
def test_figures_of_the_data_sheets(name: str) -> None:
    t = TARGETS[name]
    kib = (t.shared_bytes / 1024, t.unit_shared_bytes / 1024)
    units = (t.compute_units, t.xcds, 4 * t.registers / 1024, t.tensor_columns)
    assert (*kib, *units, t.cache_rate / 1e12) == pytest.approx(SHEETS[name])
    amd = name.startswith("gfx")
    assert (t.warp_size, t.thread_registers) == ((64, 512) if amd else (32, 255))
    assert (t.warps, t.programs, t.schedulers) == (32 if amd else 64, 32, 4)
    assert (t.shared_reserved, t.register_granule) == (0 if amd else 1024, 8)
    assert (t.max_threads, t.backend) == (1024, "hip" if amd else "cuda")
    assert t.tensor_descriptors == (name in ("sm90", "sm100"))
    assert t.operands_in_registers == (amd or name == "sm80")
