"""The native engine, as the rest of the program knows it."""

from collections.abc import Iterator, Sequence

from ...config import EngineConfig, OptimizerConfig
from ...grid import Grid, Shape
from ...state.names import Local
from ..base import Engine
from ..kind import EngineKind, Run, untrained
from ..options import EngineOptions
from .shares import share


class Native(EngineKind):
    """Data and expert parallel with ZeRO 0 and 1, in this repository."""

    name = "native"
    reduces_apart = True

    @classmethod
    def problems(
        cls,
        shape: Shape,
        zero: int,
        optimizer: OptimizerConfig | None = None,
        engine: EngineConfig | None = None,
    ) -> Iterator[str]:
        """ZeRO beyond 1, and in training what no engine runs."""
        if zero > 1:
            yield (
                f"zero is {zero}, but engine native shards the optimizer only: set zero to 1, or "
                "engine to deepspeed"
            )
        if engine is not None:
            yield from untrained(shape)

    @classmethod
    def share(
        cls,
        held: Sequence[Local],
        members: int,
        zero: int,
        bucket_bytes: int,
        optimizer: OptimizerConfig,
    ) -> Iterator[tuple[int, Run]]:
        """Buckets, each cut into shards."""
        return share(held, members, bucket_bytes, optimizer)

    @classmethod
    def make(cls, options: EngineOptions, grid: Grid) -> Engine:
        """The engine itself."""
        from .engine import NativeEngine

        return NativeEngine(options, grid)
