"""Every measurement of every rank's device, one after another."""

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ..origin import describe, gather, rank_and_world
from ..schema import Hardware, Skip
from . import attention, copies, gemm, memory
from .case import Probe
from .clock import measure
from .config import HardwareConfig

Cases = Callable[[HardwareConfig, torch.device], Iterator[Probe]]
Emit = Callable[..., None]

BENCHES: Mapping[str, Cases] = {
    "memory": memory.cases,
    "gemm": gemm.cases,
    "experts": gemm.expert_cases,
    "attention": attention.cases,
    "copy": copies.cases,
}


def planned(config: HardwareConfig, device: torch.device) -> int:
    """How many cases `run` has for each rank."""
    return sum(1 for _ in _cases(config, device))


def run(config: HardwareConfig, device: torch.device, emit: Emit) -> None:
    """Measure each rank's own device, all ranks at the same case at once.

    Collective over the default process group, and complete without one. `emit(kind, **fields)`
    gets, on rank 0: `header` (report) first, then a `measurement` or a `skip` (value) for each rank
    and case; on every rank a `step` (step, total, what) before each case.
    """
    rank, _ = rank_and_world()
    header = describe("hardware", config, device)
    if header:
        emit("header", report=asdict(header))
    torch.backends.cuda.matmul.allow_tf32 = False
    total = planned(config, device)
    for step, case in enumerate(_cases(config, device)):
        emit("step", step=step, total=total, what=case.name)
        for result in gather(_result(case, config, device, rank)) or []:
            kind = "skip" if isinstance(result, Skip) else "measurement"
            emit(kind, value=asdict(result))


def _cases(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    for bench in dict.fromkeys(config.benches):
        yield from BENCHES[bench](config, device)


def _result(
    case: Probe, config: HardwareConfig, device: torch.device, rank: int
) -> Hardware | Skip:
    room = int(config.memory_fraction * free_bytes(device))
    if case.bytes > room:
        return _skip(case, rank, f"needs {case.bytes:,} bytes, and {room:,} may be used")
    try:
        times = measure(case.make(), device, config.budget_s)
    # What one kernel lacks or breaks must not cost the other figures.
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        return _skip(case, rank, f"{type(error).__name__}: {first}")
    finally:
        _free(device)
    return Hardware(
        bench=case.bench,
        kind=case.kind,
        dtype=case.dtype,
        shape=case.shape,
        rank=rank,
        iterations=times.samples * times.calls,
        p50_s=times.p50_s,
        p95_s=times.p95_s,
        max_s=times.max_s,
        rate=case.work / times.p50_s,
        unit=case.unit,
    )


def _skip(case: Probe, rank: int, reason: str) -> Skip:
    return Skip(f"{case.name}, rank {rank}", case.bytes, reason)


def _free(device: torch.device) -> None:
    """Give memory back; raises where the GPU is lost, which ends the run."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; of a CPU's host, this rank's even share."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    kib = next(int(line.split()[1]) for line in text.splitlines() if "MemAvailable" in line)
    return kib * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
