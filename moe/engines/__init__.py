"""Engines behind one protocol."""

from ..grid import Groups
from .base import Engine
from .options import EngineOptions


def make_engine(options: EngineOptions, groups: Groups) -> Engine:
    """The engine that `engine.name` chooses; each imports its own libraries only when chosen."""
    if options.engine.name == "deepspeed":
        from .deepspeed.engine import DeepSpeedEngine

        return DeepSpeedEngine(options, groups)
    from .native.engine import NativeEngine

    return NativeEngine(options, groups)
