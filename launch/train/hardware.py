"""The device of a rank, its name, and what it can do at best."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...kernels import devices


def rank_device() -> torch.device:
    """This rank's device: its GPU where there is one (CUDA or ROCm), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Ray shows each worker its own GPU only; torchrun shows all of the node.
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def peak_flops(device: torch.device) -> float | None:
    """Peak dense bf16 FLOP/s of a GPU that `kernels.devices` lists; None for anything else."""
    sheet = devices.device(device_name(device))
    return sheet.bf16_flops if sheet and device.type == "cuda" else None


def device_name(device: torch.device) -> str:
    """The GPU's name as the system gives it, or the CPU's and how many cores it has."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


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
    return {
        "device": device_name(device),
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
