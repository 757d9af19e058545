"""What a training step's communication takes: the interface that a predictor fills."""

from dataclasses import dataclass
from typing import Protocol

from ..config import LayoutConfig, ModelConfig


@dataclass(frozen=True)
class Traffic:
    """Seconds of one optimizer step's collectives: reducing `gradients`, gathering updated
    `weights`, exchanging `tokens` with the ranks that hold their experts."""

    gradients: float
    weights: float
    tokens: float


class Communication(Protocol):
    """Predicts a step's collectives."""

    @property
    def label(self) -> str:
        """Where the figures come from."""
        ...

    def predict(
        self,
        model: ModelConfig,
        layout: LayoutConfig,
        tokens: int,
        microbatches: int,
        recompute: bool,
    ) -> Traffic:
        """A step of `microbatches` with `tokens` each on every rank."""
        ...
