"""Where a run starts: its own last checkpoint, another one that it was told to load, or nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import UserError
from ..moe.checkpoint.folder import step_folder
from ..moe.checkpoint.reader import Reader, choose, latest
from ..moe.checkpoint.source import Source
from ..moe.config import CheckpointConfig, ModelConfig

OPTIMIZERS = ("adamw/", "muon/")


class Weights:
    """The weights of a checkpoint as the state of step 0: its optimizer state reads as zeros."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.folder, self.tensors = source.folder, source.tensors
        self.step = 0
        self.meta = {key: value for key, value in source.meta.items() if key == "model"}

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        """Elements [offset, offset + numel) as `Source.read` gives them."""
        if name.startswith(OPTIMIZERS) and numel is not None:
            return torch.zeros(numel)
        return self._source.read(name, offset, numel)


def find_start(config: CheckpointConfig, note: Callable[[str], None]) -> Source | None:
    """The checkpoint to start from, the same on every rank; None for a fresh start. Collective:
    rank 0 verifies the run's own and chooses."""
    step = -1
    if dist.get_rank() == 0:
        folder = choose(config.path, note)
        step = Reader(folder).step if folder else -1
    chosen = torch.tensor(step)
    dist.broadcast(chosen, 0)
    step = int(chosen.item())
    if step >= 0:
        return Reader(step_folder(Path(config.path), step))
    return open_start(config.load) if config.load else None


def open_start(load: str) -> Source:
    """The checkpoint `load`; one without optimizer state is the start of step 0.

    Raises UserError for what is no checkpoint.
    """
    folder = Path(load)
    if not folder.is_dir():
        raise UserError(f"checkpoint.load: {load} is no folder; name a checkpoint's folder")
    source: Source = Reader(latest(folder) or folder)
    if any(name.startswith(OPTIMIZERS) for name in source.tensors):
        return source
    return Weights(source)


def check_same_model(saved: dict[str, Any] | None, model: ModelConfig) -> None:
    """Raise UserError where the checkpoint's model, if it names one, is not this run's."""
    present = model.model_dump(mode="json")
    for field, value in present.items():
        if saved is not None and saved.get(field) != value:
            raise UserError(
                f"model.{field}: the checkpoint has {saved.get(field)}, this run {value}; set it "
                "back, or give the run another output folder"
            )


def random_seed(seed: int, rank: int, step: int) -> int:
    """The seed of a rank that a checkpoint has no random state for: it had fewer ranks."""
    return seed * 1_000_003 + step * 65_537 + rank
