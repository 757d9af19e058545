"""Where a run takes place: the report's header."""

import os
import platform
import shlex
import socket
import sys
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel

from .. import __version__
from .caches import cache_bytes
from .schema import BenchReport, Host


def rank_and_world() -> tuple[int, int]:
    """This rank's place; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@cache
def side_group() -> dist.ProcessGroup | None:
    """A Gloo group of all ranks, for what must not touch the devices; None for one process.

    The first call is collective.
    """
    return dist.new_group(backend="gloo") if rank_and_world()[1] > 1 else None


def gather(value: Any) -> list[Any] | None:
    """Every rank's `value`, in order, on rank 0; None elsewhere. Collective."""
    rank, world = rank_and_world()
    if world == 1:
        return [value]
    found: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(value, found, group=side_group())
    return found


def most(value: int) -> int:
    """The largest of all ranks' values, on every rank. Collective."""
    if rank_and_world()[1] == 1:
        return value
    shared = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(shared, dist.ReduceOp.MAX, group=side_group())
    return int(shared)


def describe(
    kind: Literal["collectives", "hardware"], config: BaseModel, device: torch.device
) -> BenchReport | None:
    """A report with no measurement yet, on rank 0; None elsewhere. Collective."""
    # Containers may share one host's name: launchers number the nodes (torchrun, our Ray workers).
    node = os.environ.get("GROUP_RANK", "0")
    sizes = device_bytes(device), cache_bytes(device)
    found = gather((socket.gethostname(), node, device_name(device), *sizes))
    if found is None:
        return None
    return BenchReport(
        kind=kind,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(sys.argv),
        backend=_backend(device),
        world_size=len(found),
        hosts=_hosts(found, device.type == "cpu"),
        versions=_versions(),
        config=config.model_dump(mode="json"),
    )


def device_name(device: torch.device) -> str:
    """The product's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def device_bytes(device: torch.device) -> int:
    """All memory of the device; of a CPU, the host's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _backend(device: torch.device) -> str:
    if not dist.is_initialized():
        return "none"
    if device.type == "cpu":
        return "gloo"
    return "rccl" if torch.version.hip else "nccl"


def _hosts(found: list[tuple[str, str, str, int, int]], shared: bool) -> list[Host]:
    nodes = list(dict.fromkeys(place[:2] for place in found))
    names = Counter(name for name, _ in nodes)
    hosts = []
    for name, node in nodes:
        ranks = [rank for rank, place in enumerate(found) if place[:2] == (name, node)]
        label = name if names[name] == 1 else f"{name}/{node}"
        *_, device, memory, last = found[ranks[0]]
        # A CPU's memory is the host's, which its ranks share.
        each = memory // len(ranks) if shared else memory
        hosts.append(Host(label, ranks, device, len(ranks), each, last))
    return hosts


def _versions() -> dict[str, str]:
    versions = {
        "moelstrom": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if torch.version.hip:
        versions["hip"] = torch.version.hip
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    if torch.cuda.is_available() and not torch.version.hip:
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return versions
