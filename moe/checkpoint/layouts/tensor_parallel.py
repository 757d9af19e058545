"""Which rows and columns of a tensor one tensor-parallel rank holds (arXiv 1909.08053)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...config import ModelConfig
from ...state.source import Slab
from .slabs import block


@dataclass(frozen=True)
class Cut:
    """Runs of `rows`, and the `columns` of each, of a tensor seen as a matrix.

    `writes`: whether this rank speaks for its copy where several hold the same elements.
    """

    shape: tuple[int, ...]
    rows: tuple[range, ...]
    columns: range
    writes: bool

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of what this rank holds."""
        rows = sum(len(run) for run in self.rows)
        return (rows, len(self.columns)) if len(self.shape) == 2 else (rows,)

    def slabs(self, name: str) -> Iterator[Slab]:
        """The rank's elements of the tensor `name`, in the order of its memory."""
        width = math.prod(self.shape[1:])
        for run in self.rows:
            first = run.start * width + self.columns.start
            if run and self.columns:
                yield block(name, first, len(self.columns), len(run), width)


def cut_tensor(leaf: str, shape: tuple[int, ...], model: ModelConfig, size: int, rank: int) -> Cut:
    """The part of rank `rank` of `size` of the parameter (or expert) whose name ends with `leaf`.

    Queries, keys and values go by heads, gate and up by their output rows, `o` and `down` by
    their input columns, embedding and head by vocabulary rows (the last ranks may get fewer).
    Norms and routers, and all that is not known here, are copied. Where there are fewer KV heads
    than ranks, size / num_kv_heads neighbours hold copies of one.
    """
    rows, columns = range(shape[0]), range(math.prod(shape[1:]))
    if size == 1:
        return Cut(shape, (rows,), columns, True)
    if leaf in ("k", "v"):
        copies = max(1, size // model.num_kv_heads)
        mine = _share(rows, size // copies, rank // copies)
        return Cut(shape, (mine,), columns, rank % copies == 0)
    if leaf == "gate_up":
        half = len(rows) // 2
        halves = tuple(_share(part, size, rank) for part in (rows[:half], rows[half:]))
        return Cut(shape, halves, columns, True)
    if leaf in ("o", "down"):
        return Cut(shape, (rows,), _share(columns, size, rank), True)
    if leaf in ("q", "embedding", "head"):
        return Cut(shape, (_share(rows, size, rank),), columns, True)
    return Cut(shape, (rows,), columns, rank == 0)


def _share(whole: range, size: int, rank: int) -> range:
    step = -(-len(whole) // size)
    return whole[rank * step : (rank + 1) * step]
