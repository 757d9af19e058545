"""Every measurement of every rank's device, one after another."""

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from ..caches import cache_bytes
from ..origin import describe, gather, most, rank_and_world
from ..schema import Hardware, Skip
from . import PROBES
from .clock import measure
from .config import MEMORY_SETS, HardwareConfig
from .probe import Probe

Emit = Callable[..., None]


def planned(config: HardwareConfig, device: torch.device) -> int:
    """How many probes `run` has for each rank."""
    return sum(1 for _ in _probes(config, device))


def run(config: HardwareConfig, device: torch.device, emit: Emit) -> None:
    """Measure each rank's own device, all ranks at the same probe at once.

    Collective over the default process group, and complete without one. `emit(kind, **fields)`
    gets, on rank 0: `header` (report) first, then a `measurement` or a `skip` (value) for each rank
    and probe; on every rank a `step` (step, total, what) before each probe.
    """
    rank, _ = rank_and_world()
    config = _agreed(config, device)
    header = describe("hardware", config, device)
    if header:
        emit("header", report=asdict(header))
    torch.backends.cuda.matmul.allow_tf32 = False
    total = planned(config, device)
    for step, probe in enumerate(_probes(config, device)):
        emit("step", step=step, total=total, what=probe.name)
        for result in gather(_result(probe, config, device, rank)) or []:
            kind = "skip" if isinstance(result, Skip) else "measurement"
            emit(kind, value=asdict(result))


def _agreed(config: HardwareConfig, device: torch.device) -> HardwareConfig:
    # Hosts with caches of several sizes must go through the same probes.
    least = config.least_set or MEMORY_SETS * most(cache_bytes(device)) or None
    return config.model_copy(update={"least_set": least})


def _probes(config: HardwareConfig, device: torch.device) -> Iterator[Probe]:
    for bench in dict.fromkeys(config.benches):
        yield from PROBES[bench].probes(config, device)


def _result(
    probe: Probe, config: HardwareConfig, device: torch.device, rank: int
) -> Hardware | Skip:
    room = int(config.memory_fraction * free_bytes(device))
    if probe.bytes > room:
        return _skip(probe, rank, f"needs {probe.bytes:,} bytes, and {room:,} may be used")
    try:
        times = measure(probe.make(), device, config.budget_s)
    # What one kernel lacks or breaks must not cost the other figures.
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        return _skip(probe, rank, f"{type(error).__name__}: {first}")
    finally:
        _free(device)
    return Hardware(
        bench=probe.bench,
        kind=probe.kind,
        dtype=probe.dtype,
        shape=probe.shape,
        rank=rank,
        iterations=times.samples * times.calls,
        p50_s=times.p50_s,
        p95_s=times.p95_s,
        max_s=times.max_s,
        rate=probe.work / times.p50_s,
        unit=probe.unit,
    )


def _skip(probe: Probe, rank: int, reason: str) -> Skip:
    return Skip(f"{probe.name}, rank {rank}", probe.bytes, reason)


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
