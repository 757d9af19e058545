"""The protocol that every engine fills, so that the loop above knows none of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..batch import Batch
from ..config import ModelConfig
from ..model import Model
from ..state.shard import Shard
from ..state.source import Source


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did, the same on every rank.

    `loss` is the mean cross-entropy in nats over the global batch, `aux_loss` the weighted
    balancing losses that were added to it, `grad_norm` the global norm before clipping (each
    expert counted once), `lr` the rate applied. `expert_load`: of each layer with experts [E], the
    tokens that each got in the global batch. `tokens` counts the global targets.
    `skipped`: the update was not done. `leave`: some rank wants to stop after this step.
    """

    loss: float
    aux_loss: float
    grad_norm: float
    lr: float
    tokens: int
    expert_load: list[torch.Tensor]
    skipped: bool = False
    leave: bool = False


def _never() -> bool:
    return False


@dataclass(frozen=True)
class StepHooks:
    """What the training loop decides in the middle of a step.

    `accept` (loss, gradient norm) says whether to update; it is asked before anything changes and
    must answer the same on every rank. None always updates, and saves a wait for the device.
    `leave` says, late in the step, whether this rank wants to stop after it.
    """

    accept: Callable[[float, float], bool] | None = None
    leave: Callable[[], bool] = _never


NO_HOOKS = StepHooks()


class Engine(Protocol):
    """Owns the parameters' sharding, the backward pass and the optimizer."""

    model: Model
    steps_done: int
    skipped: int
    """Steps of `steps_done` whose update was refused: AdamW's own count leaves them out."""
    before_update: Callable[[], None]
    """Called in `step` before anything that `export_state` calls steady is written."""

    def setup(self, device: torch.device) -> None:
        """Prepare process groups and libraries; collective over all ranks."""
        ...

    def build(self, config: ModelConfig, seed: int) -> None:
        """Make a fresh model, the same for every layout; collective over all ranks."""
        ...

    def step(self, microbatches: Sequence[Batch], hooks: StepHooks = NO_HOOKS) -> StepMetrics:
        """Accumulate the micro-batches, update the parameters and the schedule.

        A step that `hooks.accept` refuses changes no weight, buffer or optimizer state; it counts
        in `steps_done`.
        """
        ...

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """Summed cross-entropy (nats) and number of targets over all ranks, no update."""
        ...

    def export_state(self) -> list[Shard]:
        """This rank's part of the canonical state; over all ranks every element comes once."""
        ...

    def import_state(self, reader: Source) -> None:
        """Load the canonical state and `steps_done` (the checkpoint's step); each rank reads only
        the ranges it holds."""
        ...
