"""A freshly initialised model, the same for every layout."""

import hashlib

import torch

from .config import ModelConfig
from .grid import Grid
from .model import Model, model_specs
from .state.names import Local


@torch.no_grad()
def build_model(config: ModelConfig, grid: Grid, seed: int, recompute: bool = False) -> Model:
    """Build this rank's part of the model on CPU in fp32.

    Each logical tensor draws from a generator of its own, seeded by `seed` and its canonical
    name: rank count and expert placement change no value.
    """
    model = Model(config, grid, recompute)
    for local, parameter in model.parameters_here():
        _initialise(local, parameter.view(-1), seed)
    specs = model_specs(config)
    for name, buffer in model.named_buffers():
        specs[name].init(buffer.view(-1), _generator(seed, name))
    return model


def _initialise(local: Local, flat: torch.Tensor, seed: int) -> None:
    for t in local.logicals():
        local.spec.init(flat[t.start : t.start + t.numel], _generator(seed, t.name))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
