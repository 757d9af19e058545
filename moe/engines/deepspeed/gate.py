"""Refusing an update inside DeepSpeed's step: the norm is known, and nothing has changed yet."""

from collections.abc import Callable
from typing import Any

import torch


class Gate:
    """Open unless it was closed with a question, which is asked once for all parameter groups."""

    def __init__(self) -> None:
        self._ask: Callable[[], bool] | None = None
        self._refused = False

    def close(self, ask: Callable[[], bool]) -> None:
        """Let `ask` decide on the next step."""
        self._ask = ask

    def refuses(self) -> bool:
        """Whether this step's update must not be done."""
        if self._ask is not None:
            self._refused, self._ask = not self._ask(), None
        return self._refused

    def open(self) -> bool:
        """End the step; returns whether the update was let through."""
        refused, self._refused, self._ask = self._refused, False, None
        return not refused

    def guard(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Make the optimizer's `step` do nothing while the gate refuses. Of the instance: a class
        of our own would be an untested optimizer to ZeRO."""
        step = optimizer.step

        def guarded(*args: Any) -> Any:
            return None if self.refuses() else step(*args)

        optimizer.step = guarded  # type: ignore[assignment]
        return optimizer
