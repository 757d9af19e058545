"""What a rank trains with: its place among the ranks, data, model and engine."""

from dataclasses import dataclass

import torch

from ...moe.build import build_model
from ...moe.config import ModelConfig
from ...moe.engines import make_engine
from ...moe.engines.base import Engine
from ...moe.grid import Groups
from ...moe.vocabulary import sized
from ..config import RunConfig
from ..data.loader import Loader


@dataclass(frozen=True)
class Assembly:
    """One rank's parts; `model` is the config with its vocabulary set."""

    groups: Groups
    loader: Loader
    model: ModelConfig
    engine: Engine


def build(config: RunConfig, device: torch.device) -> Assembly:
    """Build everything; collective over all ranks."""
    groups = Groups(config.layout)
    rank, size = groups.dp.rank, groups.dp.size
    loader = Loader(
        config.data, seed=config.seed, dp_rank=rank, dp_size=size, run_folder=config.folder
    )
    model = sized(config.model, loader.vocab_size)
    torch.manual_seed(config.seed)
    engine = make_engine(config.engine_options, groups)
    engine.setup(device)
    engine.build(build_model(model, groups, config.seed, config.engine.recompute))
    return Assembly(groups, loader, model, engine)
