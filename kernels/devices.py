"""What GPUs can do at best by their vendors' data sheets: the one table of peaks.

Rates are of one device as the system counts them (an MI250X or MI250 is two), dense, without
sparsity; fp16's peak equals bf16's on all of them.
"""

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A product: `words` that its name has, and the `target` that the kernels take it for."""

    words: tuple[str, ...]
    target: str
    bf16_flops: float
    fp8_flops: float | None
    """None: no matrix instructions for it."""
    memory_rate: float
    """HBM, bytes/s."""
    memory_bytes: int
    sheet: str
    """The document that says so."""

    @property
    def fp16_flops(self) -> float:
        """Dense fp16 FLOP/s."""
        return self.bf16_flops


_A100 = "NVIDIA A100 Tensor Core GPU data sheet"
_H100 = "NVIDIA H100 Tensor Core GPU data sheet"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet"
_MI200 = "AMD Instinct MI200 series data sheet"

DEVICES: tuple[Device, ...] = (
    Device(("A100", "SXM4", "40GB"), "sm80", 312e12, None, 1.555e12, 40 * GIB, _A100),
    Device(("A100", "PCIE", "40GB"), "sm80", 312e12, None, 1.555e12, 40 * GIB, _A100),
    Device(("A100", "PCIE"), "sm80", 312e12, None, 1.935e12, 80 * GIB, _A100),
    Device(("A100",), "sm80", 312e12, None, 2.039e12, 80 * GIB, _A100),
    Device(("H100", "PCIE"), "sm90", 756e12, 1513e12, 2.0e12, 80 * GIB, _H100),
    Device(("H100", "NVL"), "sm90", 835e12, 1671e12, 3.9e12, 94 * GIB, _H100),
    Device(("H100",), "sm90", 989.4e12, 1978.9e12, 3.35e12, 80 * GIB, _H100),
    Device(("H200", "NVL"), "sm90", 835e12, 1671e12, 4.8e12, 141 * GIB, _H200),
    Device(("H200",), "sm90", 989.4e12, 1978.9e12, 4.8e12, 141 * GIB, _H200),
    Device(
        *(("GH200",), "sm90", 989.4e12, 1978.9e12, 4.0e12, 96 * GIB),
        "NVIDIA GH200 Grace Hopper Superchip data sheet",
    ),
    Device(("B200",), "sm100", 2250e12, 4500e12, 8.0e12, 180 * GIB, "NVIDIA DGX B200 data sheet"),
    Device(
        *(("GB200",), "sm100", 2500e12, 5000e12, 8.0e12, 186 * GIB),
        "NVIDIA GB200 NVL72 data sheet, of one GPU",
    ),
    Device(("MI210",), "gfx90a", 181e12, None, 1.6e12, 64 * GIB, _MI200),
    Device(("MI250",), "gfx90a", 181e12, None, 1.6e12, 64 * GIB, _MI200),
    Device(("MI250X",), "gfx90a", 191.5e12, None, 1.6e12, 64 * GIB, _MI200),
    Device(
        *(("MI300A",), "gfx942", 980.6e12, 1961.2e12, 5.3e12, 128 * GIB),
        "AMD Instinct MI300A APU data sheet",
    ),
    Device(
        *(("MI300X",), "gfx942", 1307.4e12, 2614.9e12, 5.3e12, 192 * GIB),
        "AMD Instinct MI300X accelerator data sheet",
    ),
    Device(
        *(("MI325X",), "gfx942", 1307.4e12, 2614.9e12, 6.0e12, 256 * GIB),
        "AMD Instinct MI325X accelerator data sheet",
    ),
    Device(
        *(("MI350X",), "gfx950", 2306.9e12, 4613.7e12, 8.0e12, 288 * GIB),
        "AMD Instinct MI350X GPU data sheet",
    ),
    Device(
        *(("MI355X",), "gfx950", 2516.6e12, 5033.2e12, 8.0e12, 288 * GIB),
        "AMD Instinct MI355X GPU data sheet",
    ),
)
"""Of two that fit a name, the first: the one with more words stands before the plain product."""


def device(name: str) -> Device | None:
    """The device of a name as the system gives it, such as `NVIDIA H100 80GB HBM3`; None for what
    is not listed."""
    words = set(re.split(r"[^0-9A-Z]+", name.upper()))
    return next((entry for entry in DEVICES if words.issuperset(entry.words)), None)
