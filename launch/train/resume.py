"""Where a run starts: its own last checkpoint, another one that it was told to load, or nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError

from ... import UserError
from ...moe.checkpoint.folder import step_folder
from ...moe.checkpoint.foreign import open_source
from ...moe.checkpoint.huggingface.kept import KEPT
from ...moe.checkpoint.manifest import explain
from ...moe.checkpoint.reader import Reader, choose, latest
from ...moe.checkpoint.replica.keeper import Keeper
from ...moe.config import CheckpointConfig, ModelConfig, layer_kinds
from ...moe.state.names import has_optimizer
from ...moe.state.source import Source

SHARED = {"vocab_size", "hidden_size", "num_layers", "norm_eps", "tie_embeddings", "init_std"}
"""The fields of a model that are no layer's."""
NAMED = 5
"""How many differing fields an error names."""


class WeightsOnly:
    """A checkpoint without optimizer state as the start of step 0."""

    def __init__(self, source: Source) -> None:
        self.folder, self.tensors, self.read = source.folder, source.tensors, source.read
        self.step = 0
        self.meta = {"model": source.meta.get("model"), **handed_on(source.meta)}


def handed_on(meta: dict[str, Any]) -> dict[str, Any]:
    """What a run's own checkpoints take over from the one that it started from."""
    return {KEPT: meta[KEPT]} if KEPT in meta else {}


def find_start(
    config: CheckpointConfig,
    model: ModelConfig,
    keeper: Keeper | None,
    below: int | None,
    note: Callable[[str], None],
) -> tuple[Source | None, bool]:
    """The checkpoint to start from, the same on every rank, and whether it is the run's own; None
    for a fresh start.

    Collective. A whole copy in memory, of a step below `below` if given, comes first; else rank 0
    verifies the run's own on disk and chooses, and every rank reads the ranges that it needs of
    that very save; else `config.load` is opened.
    """
    copy = _in_memory(config, keeper, below)
    if copy is not None:
        return Reader(copy), True
    chosen: list[tuple[int, str] | None] = [None]
    if dist.get_rank() == 0:
        folder = choose(config.path, note)
        if folder:
            reader = Reader(folder)
            chosen = [(reader.step, reader.marker)]
    dist.broadcast_object_list(chosen, 0, device=torch.device("cpu"))
    if chosen[0] is not None:
        step, marker = chosen[0]
        return Reader(step_folder(Path(config.path), step), marker), True
    return (open_start(config.load, model) if config.load else None), False


def _in_memory(config: CheckpointConfig, keeper: Keeper | None, below: int | None) -> Path | None:
    """The copy of the newest checkpoint, every file already hashed; collective."""
    if keeper is None:
        return None
    return keeper.restore(latest(config.path) if dist.get_rank() == 0 else None, below)


def open_start(load: str, model: ModelConfig) -> Source:
    """The checkpoint `load` (of a folder of them the newest) of any format that is read; one
    without optimizer state is the start of step 0.

    Raises UserError for what is no checkpoint of this model.
    """
    try:
        source = open_source(latest(load) or load, model)
    except UserError as error:
        raise UserError(f"checkpoint.load: {error}") from None
    return source if has_optimizer(source) else WeightsOnly(source)


def check_same_model(saved: dict[str, Any] | None, model: ModelConfig) -> None:
    """Raise UserError where the checkpoint's model, if it names one, is not this run's.

    What a checkpoint of an earlier version does not name has its default value.
    """
    if saved is None:
        return
    try:
        before = ModelConfig.model_validate(saved)
    except ValidationError as error:
        raise UserError(f"model: the checkpoint's is not understood: {explain(error)}") from None
    apart = bool(before.layers) or bool(model.layers)
    past, present = _fields(before, apart), _fields(model, apart)
    named = [name for name in {**past, **present} if past.get(name) != present.get(name)]
    if named:
        found = (
            f"model.{name}: the checkpoint has {past.get(name)}, this run {present.get(name)}"
            for name in named[:NAMED]
        )
        more = f" and {len(named) - NAMED} more fields" if len(named) > NAMED else ""
        raise UserError(
            f"{'; '.join(found)}{more}; set it back, or give the run another output folder"
        )


def _fields(model: ModelConfig, apart: bool) -> dict[str, Any]:
    """Every value that makes the model by its dotted name; with `apart` each layer's own, however
    the layers were written."""
    if not apart:
        return dict(_flat(model.model_dump(mode="json")))
    values = model.model_dump(mode="json", include=SHARED)
    for i, kinds in enumerate(layer_kinds(model)):
        parts = {name: part.model_dump(mode="json") for name, part in vars(kinds).items()}
        values[f"layers.{i}"] = parts
    return dict(_flat(values))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
