"""Engines behind one protocol, by the name that `engine.name` uses."""

from ... import Registry
from ..grid import Grid
from .base import Engine
from .options import EngineOptions

ENGINES = Registry(
    "engines",
    __name__,
    {
        "native": "native.rules:Native",
        "deepspeed": "deepspeed.rules:DeepSpeed",
        "megatron": "megatron.rules:Megatron",
    },
)


def make_engine(options: EngineOptions, grid: Grid) -> Engine:
    """The engine that `engine.name` chooses; each imports its own libraries only when chosen."""
    engine: Engine = ENGINES[options.engine.name].make(options, grid)
    return engine


def trainers() -> list[str]:
    """The engines that train."""
    return [name for name in ENGINES if ENGINES[name].trains]
