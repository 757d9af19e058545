"""The device of a rank, and what it can do at best."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from ... import __version__

PEAK_BF16_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "MI300X": 1307e12,
    "MI250X": 191.5e12,
}
"""Dense bf16 of one device by the vendors' data sheets (an MI250X is two); the first name found in
the device's counts."""


def rank_device() -> torch.device:
    """This rank's device: its GPU where there is one (CUDA or ROCm), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Ray shows each worker its own GPU only; torchrun shows all of the node.
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def peak_flops(device: torch.device) -> float | None:
    """Peak dense bf16 FLOP/s of a known GPU; None for anything else."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_BF16_FLOPS.items() if key in name), None)


def make_deterministic() -> None:
    """Let torch use only GPU kernels that repeat bitwise; call it before any GPU work."""
    # cuBLAS repeats itself only with workspaces of its own.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Every element is written before it is read here; filling costs bandwidth.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement has to name: hardware and versions."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else _cpu(),
        "moelstrom": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
