"""The one logical view: what a checkpoint of any format offers, and what a rank holds of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says of one logical tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, order=True)
class Slab:
    """Elements of the flattened logical tensor `name` that one file or rank holds together.

    `rows` runs of `run` consecutive elements; the first starts at `offset`, each next one `stride`
    further (`stride` >= `run`; without meaning at one row, where it is 0). A plain range has one
    row; a column shard of a matrix has one run a row of the matrix.
    """

    name: str
    offset: int
    run: int
    rows: int = 1
    stride: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.run * self.rows

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.offset + (self.rows - 1) * self.stride + self.run


class Source(Protocol):
    """A complete checkpoint under canonical names, whatever wrote it."""

    folder: Path

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every logical tensor's type and shape by its name."""
        ...

    @property
    def step(self) -> int:
        """The optimizer step after which it was saved."""
        ...

    @property
    def meta(self) -> dict[str, Any]:
        """The run's JSON: {"data", "config", "model"} as the training loop saves it."""
        ...

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        """Elements [offset, offset + numel) of the flattened tensor, as a 1-D CPU tensor.

        `numel` None reads to the end. Raises UserError for what the checkpoint does not hold, and
        for damage.
        """
        ...
