"""What a reshape will do: which elements go into which file, in how much memory and time."""

import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import UserError
from ...state.source import Slab, Source, TensorInfo
from ..cover import check_cover
from ..manifest import DTYPE_NAMES
from ..tensorfile import layout, write_all
from .tensorpass import TensorPass

DEFAULT_MEMORY = 2**30
BUFFERS = 3
"""Of one chunk each, that a reader fills at once: logical order, a source piece, a target part."""
SMALLEST, LARGEST = 2**16, 2**19
"""Bytes of a chunk; writes of 2 MiB cost twice as much as these."""
PROBE = 2**26


@dataclass(frozen=True)
class PlanPart:
    """One piece of the new checkpoint: `slab`, in the file of `rank`."""

    rank: int
    slab: Slab

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.slab.name}@{self.slab.offset}"


@dataclass(frozen=True)
class ReshapePlan:
    """`parts` of every logical tensor ascend and hold it exactly once. `chunk` bytes are read at
    once by each of `readers` threads."""

    source: Source
    parts: dict[str, list[PlanPart]]
    world_size: int
    readers: int
    chunk: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return state_bytes(self.source)

    @property
    def peak_bytes(self) -> int:
        """Of buffers, at most."""
        return BUFFERS * self.chunk * self.readers

    def files(self) -> dict[int, dict[str, TensorInfo]]:
        """What each rank's file holds; ranks that hold nothing get none."""
        found: dict[int, dict[str, TensorInfo]] = defaultdict(dict)
        for name, parts in self.parts.items():
            for part in parts:
                info = TensorInfo(self.source.tensors[name].dtype, (part.slab.numel,))
                found[part.rank][part.key] = info
        return dict(sorted(found.items()))

    def summary(self) -> dict[str, Any]:
        """Sizes."""
        return {
            "source": str(self.source.folder),
            "step": self.source.step,
            "world_size": self.world_size,
            "tensors": len(self.parts),
            "pieces": sum(map(len, self.parts.values())),
            "bytes": self.nbytes,
            "readers": self.readers,
            "peak_bytes": self.peak_bytes,
        }

    def as_json(self) -> dict[str, Any]:
        """Sizes, and every part of every file."""
        held: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for parts in self.parts.values():
            for part in parts:
                held[part.rank].append(_slab_json(part.slab))
        files = [
            {"rank": rank, "bytes": layout(infos)[2], "pieces": held[rank]}
            for rank, infos in self.files().items()
        ]
        return {**self.summary(), "files": files}


def _slab_json(s: Slab) -> dict[str, Any]:
    return {"tensor": s.name, "offset": s.offset, "run": s.run, "rows": s.rows, "stride": s.stride}


def tensor_bytes(info: TensorInfo) -> int:
    """Bytes of a logical tensor."""
    return math.prod(info.shape) * info.dtype.itemsize


def state_bytes(source: Source) -> int:
    """Bytes of all its logical tensors."""
    return sum(map(tensor_bytes, source.tensors.values()))


def make_plan(
    source: Source,
    held: Sequence[Sequence[Slab]],
    memory: int = DEFAULT_MEMORY,
    readers: int | None = None,
) -> ReshapePlan:
    """Plan the checkpoint in which rank r holds `held[r]`; tensors that nobody holds go to rank 0.

    `memory` bounds the bytes of buffers. Raises UserError for a budget that no reader fits in,
    ValueError unless `held` has each element of a tensor exactly once.
    """
    # By tensor and not by file: a source piece is then read, checked and hashed once, whichever
    # files its elements go to, and one tensor's pass bounds the memory.
    parts: dict[str, list[PlanPart]] = {name: [] for name in source.tensors}
    for rank, slabs in enumerate(held):
        for slab in slabs:
            parts[slab.name].append(PlanPart(rank, slab))
    for name, mine in parts.items():
        numel = math.prod(source.tensors[name].shape)
        if not mine and numel:
            mine.append(PlanPart(0, Slab(name, 0, numel)))
        # Ascending, as the pass over the source meets them.
        mine.sort(key=lambda part: part.slab.offset)
        check_cover([part.slab for part in mine], numel)
    count, chunk = fit(memory, readers or os.cpu_count() or 1)
    return ReshapePlan(source, parts, len(held), count, chunk)


def fit(memory: int, readers: int) -> tuple[int, int]:
    """(readers, bytes of a chunk) within `memory`; UserError if one reader does not fit."""
    count = min(readers, memory // (BUFFERS * SMALLEST))
    if count < 1:
        raise UserError(f"--memory {memory}: give {BUFFERS * SMALLEST} bytes or more")
    # Fewer readers before smaller chunks: a disk likes long reads better than many hands.
    chunk = min(LARGEST, memory // (BUFFERS * count))
    return count, chunk - chunk % SMALLEST


def estimate_seconds(plan: ReshapePlan, out: Path) -> float:
    """How long the plan takes, from copying and hashing a little of the source to out's disk."""
    # Onto the disk that will take the result: another's speed says nothing.
    parent = next(p for p in (out, *out.resolve().parents) if p.is_dir())
    names = _probe_names(plan)
    done = sum(tensor_bytes(plan.source.tensors[name]) for name in names)
    with tempfile.TemporaryFile(dir=parent) as file, ThreadPoolExecutor(plan.readers) as pool:
        started = time.perf_counter()
        list(pool.map(lambda name: _copy(plan, name, file.fileno()), names))
        os.fsync(file.fileno())
        seconds = time.perf_counter() - started
    return seconds * plan.nbytes / max(done, 1)


def _probe_names(plan: ReshapePlan) -> list[str]:
    names, done = [], 0
    for name in plan.parts:
        if done < PROBE:
            names.append(name)
            done += tensor_bytes(plan.source.tensors[name])
    return names


def _copy(plan: ReshapePlan, name: str, fd: int) -> None:
    slabs = [part.slab for part in plan.parts[name]]

    def emit(slab: Slab, begin: int, data: Any) -> None:
        write_all(fd, memoryview(data).cast("B"), (slab.offset + begin) * data.itemsize)

    TensorPass(plan.source, name, slabs).run(memoryview(bytearray(plan.chunk)), emit)


def dtype_name(info: TensorInfo) -> str:
    """The manifest's name of its dtype."""
    return DTYPE_NAMES[info.dtype]
