"""The figures of the data sheets, pinned; and which of them a device's name gets."""

import pytest

from moelstrom.kernels.devices import DEVICES, GIB, device
from moelstrom.kernels.targets import TARGETS

FIGURES = {
    "NVIDIA A100-SXM4-40GB": ("sm80", 312, None, 1.555, 40),
    "NVIDIA A100-SXM4-80GB": ("sm80", 312, None, 2.039, 80),
    "NVIDIA A100-PCIE-40GB": ("sm80", 312, None, 1.555, 40),
    "NVIDIA A100 80GB PCIe": ("sm80", 312, None, 1.935, 80),
    "NVIDIA H100 80GB HBM3": ("sm90", 989.4, 1978.9, 3.35, 80),
    "NVIDIA H100 PCIe": ("sm90", 756, 1513, 2.0, 80),
    "NVIDIA H100 NVL": ("sm90", 835, 1671, 3.9, 94),
    "NVIDIA H200": ("sm90", 989.4, 1978.9, 4.8, 141),
    "NVIDIA H200 NVL": ("sm90", 835, 1671, 4.8, 141),
    "NVIDIA GH200 480GB": ("sm90", 989.4, 1978.9, 4.0, 96),
    "NVIDIA B200": ("sm100", 2250, 4500, 8.0, 180),
    "NVIDIA GB200": ("sm100", 2500, 5000, 8.0, 186),
    "AMD Instinct MI210": ("gfx90a", 181, None, 1.6, 64),
    "AMD Instinct MI250": ("gfx90a", 181, None, 1.6, 64),
    "AMD Instinct MI250X": ("gfx90a", 191.5, None, 1.6, 64),
    "AMD Instinct MI300A": ("gfx942", 980.6, 1961.2, 5.3, 128),
    "AMD Instinct MI300X VF": ("gfx942", 1307.4, 2614.9, 5.3, 192),
    "AMD Instinct MI325X": ("gfx942", 1307.4, 2614.9, 6.0, 256),
    "AMD Instinct MI350X": ("gfx950", 2306.9, 4613.7, 8.0, 288),
    "AMD Instinct MI355X": ("gfx950", 2516.6, 5033.2, 8.0, 288),
}
"""Target, dense TFLOP/s in bf16 (and fp16) and fp8, TB/s, GiB."""


@pytest.mark.parametrize("name", FIGURES)
def test_a_name_gets_its_data_sheet(name: str) -> None:
    found = device(name)
    assert found is not None and found.sheet
    fp8 = found.fp8_flops / 1e12 if found.fp8_flops else None
    figures = (found.bf16_flops / 1e12, fp8, found.memory_rate / 1e12, found.memory_bytes / GIB)
    assert (found.target, *figures) == FIGURES[name]
    assert found.fp16_flops == found.bf16_flops


def test_every_device_is_tried() -> None:
    assert {device(name) for name in FIGURES} == set(DEVICES)


@pytest.mark.parametrize("name", ["", "8 x Intel(R) Xeon(R)", "NVIDIA H1000", "NVIDIA L40S"])
def test_no_other_name_gets_one(name: str) -> None:
    assert device(name) is None


def test_targets_have_their_products_rates() -> None:
    for target in TARGETS.values():
        sheet = device(target.product)
        assert sheet and sheet.target == target.name
        rates = (target.peak_flops, target.memory_rate)
        assert rates == (sheet.bf16_flops, sheet.memory_rate)
        # The kernels use 8 bits where the device has them.
        assert bool(target.fp8) == (sheet.fp8_flops is not None)
