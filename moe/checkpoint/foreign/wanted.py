"""What a checkpoint of a model should hold, and where the model's config is found."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .... import UserError
from ...config import ModelConfig
from ...sizing.counts import count_parameters
from ...state.names import Local, Logical
from ..layouts.parameters import Skeleton
from ..manifest import explain
from ..plainfile import read_plain
from .pickles import shown

CONFIG = "config.yaml"
MAX_CONFIG = 1 << 24
"""Bytes."""
MAX_LAYERS, MAX_EXPERTS, MAX_PARAMETERS = 2**14, 2**20, 2**50
"""Layers and experts are counted out one by one; elements must have numbers."""
WRAPPERS = {"model", "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Modules that other libraries, torch.compile and our engines put around the model."""


@dataclass(frozen=True)
class Wanted:
    """The tensors of the model that `config` (with its vocabulary size) describes."""

    config: ModelConfig

    @cached_property
    def parameters(self) -> dict[str, Local]:
        """Every parameter by its name, all experts of a layer in one."""
        return {p.name: p for p in Skeleton(self.config).parameters}

    @cached_property
    def buffers(self) -> dict[str, tuple[int, ...]]:
        """Shape of every buffer by its name."""
        return {name: spec.shape for name, spec in Skeleton(self.config).buffers}

    @cached_property
    def logicals(self) -> dict[str, list[Logical]]:
        """The logical tensors in every parameter and buffer, in memory order."""
        found = {name: [Logical(name, shape, 0)] for name, shape in self.buffers.items()}
        return found | {name: p.logicals() for name, p in self.parameters.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the parameter or buffer `name`."""
        found = self.parameters.get(name)
        return self.buffers[name] if found is None else found.shape

    def numel(self, name: str) -> int:
        """Elements of the parameter or buffer `name`."""
        return math.prod(self.shape(name))

    def known(self, name: str) -> str | None:
        """The model's own name for `name`, without wrapping modules; None if it has none."""
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        return bare if bare in self.parameters or bare in self.buffers else None


def find_model(folder: Path, meta: dict[str, Any], model: ModelConfig | None) -> ModelConfig:
    """`model`, else the one in the checkpoint's own `meta`, else that of the `config.yaml` of the
    run around `folder`. Its vocabulary may be 0: `with_vocabulary` sets it.

    Raises UserError if there is none.
    """
    if model is not None:
        return model
    if isinstance(meta.get("model"), dict):
        return _model(meta["model"], str(folder))
    for place in _around(folder):
        if (place / CONFIG).is_file():
            return _model(_section(place / CONFIG), str(place / CONFIG))
    raise UserError(
        f"{folder}: a checkpoint of another library, and no config.yaml beside or above it: put "
        "the run's config.yaml into the folder, or name it with --model"
    )


def with_vocabulary(config: ModelConfig, rows: int) -> ModelConfig:
    """The config with the vocabulary of an embedding of `rows`, where it names none."""
    if config.vocab_size:
        return config
    return ModelConfig.model_validate({**config.model_dump(), "vocab_size": rows})


def read_config(file: Path) -> ModelConfig:
    """The model of a run's YAML file. Raises UserError."""
    return _model(_section(file), str(file))


def _around(folder: Path) -> Iterator[Path]:
    """The folder, and those that a run puts around its checkpoints (run/checkpoints/step/tag)."""
    place = folder.resolve()
    yield place
    yield from list(place.parents)[:3]


def _section(file: Path) -> Any:
    try:
        data = yaml.safe_load(read_plain(file, MAX_CONFIG, links=True))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = shown(error)
        raise UserError(f"{file}: cannot be read ({reason}): give a run's YAML file") from None
    return data.get("model", {}) if isinstance(data, dict) else None


def _model(data: Any, where: str) -> ModelConfig:
    try:
        model = ModelConfig.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: model: {explain(error)}") from None
    check_countable(model, where)
    return model


def check_countable(model: ModelConfig, where: str) -> None:
    """Raise UserError for a model whose tensors, or their elements, are too many to be real."""
    experts = model.num_layers * model.moe.num_experts
    too_many = model.num_layers > MAX_LAYERS or experts > MAX_EXPERTS
    if too_many or count_parameters(model).total > MAX_PARAMETERS:
        raise UserError(
            f"{where}: model: {model.num_layers} layers with {model.moe.num_experts} experts and "
            f"a hidden_size of {model.hidden_size}: no model is that large"
        )
