"""The size of a device's last cache before its memory, as the system tells it."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch

MEMORY_SIDE = {"gfx942": 2**28, "gfx950": 2**28}
"""AMD's Infinity Cache, which stands behind L2 and which no call reports (data sheets of MI300X and
MI355X)."""
SYSTEM = Path("/sys/devices/system/cpu")


def cache_bytes(device: torch.device) -> int:
    """Bytes of the last level: a GPU's L2 (or what stands behind it); of a CPU, all last-level
    caches of the cores that this process may use. 0: not known."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = getattr(properties, "gcnArchName", "").partition(":")[0]
        return MEMORY_SIDE.get(name, int(properties.L2_cache_size))
    return host_cache_bytes(os.sched_getaffinity(0))


def host_cache_bytes(cores: Iterable[int], system: Path = SYSTEM) -> int:
    """Of these cores' last level, each cache once: threads on several dies have several."""
    found: dict[tuple[int, str], int] = {}
    for core in cores:
        levels = [_level(folder) for folder in (system / f"cpu{core}/cache").glob("index*")]
        known = [level for level in levels if level]
        if known:
            level, shared, size = max(known)
            found[level, shared] = size
    top = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == top)


def _level(folder: Path) -> tuple[int, str, int] | None:
    """(level, cores that share it, bytes) of one cache; None where the system does not say."""
    try:
        words = {
            name: (folder / name).read_text(encoding="ascii").strip()
            for name in ("level", "shared_cpu_list", "size", "type")
        }
        if words["type"] == "Instruction":
            return None
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(words["size"][-1:], 1)
        return (
            int(words["level"]),
            words["shared_cpu_list"],
            int(words["size"].rstrip("KMG")) * unit,
        )
    except (OSError, ValueError):
        return None
