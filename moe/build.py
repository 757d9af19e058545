"""A freshly initialised model, the same for every layout."""

import hashlib

import torch
from torch import nn

from .config import ModelConfig
from .grid import Groups
from .model import Model
from .state.names import logical_tensors


def build_model(config: ModelConfig, groups: Groups, seed: int, recompute: bool = False) -> Model:
    """Build this rank's part of the model on CPU in fp32.

    Each logical tensor draws from a generator of its own, seeded by `seed` and its canonical
    name: rank count and expert placement change no value.
    """
    model = Model(config, groups, recompute)
    for name, parameter in model.named_parameters():
        _initialise(name, parameter, config, seed)
    return model


@torch.no_grad()
def _initialise(name: str, parameter: nn.Parameter, config: ModelConfig, seed: int) -> None:
    if name.endswith("norm.weight") or name.endswith(("q_norm", "k_norm")):
        parameter.fill_(1.0)
        return
    std = config.init_std
    if name.endswith((".o", ".down")):
        # Residual outputs shrink with depth (GPT-2, section 2.3).
        std /= (2 * config.num_layers) ** 0.5
    flat = parameter.view(-1)
    for t in logical_tensors(name, parameter):
        flat[t.start : t.start + t.numel].normal_(0, std, generator=_generator(seed, t.name))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
