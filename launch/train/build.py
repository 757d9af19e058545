"""What a rank trains with: its place among the ranks, data, model and engine."""

from dataclasses import dataclass

import torch

from ...moe.config import ModelConfig
from ...moe.engines import make_engine
from ...moe.engines.base import Engine
from ...moe.grid import Grid
from ...moe.vocabulary import sized
from ..config import RunConfig
from ..data.loader import Loader


@dataclass(frozen=True)
class RankParts:
    """One rank's parts; `model` is the config with its vocabulary set."""

    grid: Grid
    loader: Loader
    model: ModelConfig
    engine: Engine


def build(config: RunConfig, device: torch.device) -> RankParts:
    """Build everything; collective over all ranks."""
    grid = Grid(config.layout)
    loader = Loader(
        config.data,
        seed=config.seed,
        dp_rank=grid.dp.rank,
        dp_size=grid.dp.size,
        run_folder=config.folder,
    )
    model = sized(config.model, loader.vocab_size)
    torch.manual_seed(config.seed)
    engine = make_engine(config.engine_options, grid)
    engine.setup(device)
    engine.build(model, config.seed)
    return RankParts(grid, loader, model, engine)
