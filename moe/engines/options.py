"""Everything an engine needs to know of the run."""

from dataclasses import dataclass

from ..config import EngineConfig, LayoutConfig, OptimizerConfig, ScheduleConfig


@dataclass(frozen=True)
class EngineOptions:
    """The sections that shape a training step; `steps` is the length of the run's schedule."""

    engine: EngineConfig
    layout: LayoutConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    steps: int

    @property
    def bucket_bytes(self) -> int:
        """Gradient bytes fused into one collective."""
        return self.engine.bucket_mb << 20
