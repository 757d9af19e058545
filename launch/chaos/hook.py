"""Faults inside a worker: a hang, a gradient that is no number, slow steps.

Imported only where MOELSTROM_CHAOS names a control folder.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch

from . import control

POLL_S = 3600.0


class Hook:
    """Asked before each step of one rank."""

    def __init__(self, folder: Path, rank: int) -> None:
        """`folder` is the control folder."""
        self._folder, self._rank = folder, rank
        self._slow_left, self._factor = 0, 1.0
        self._began: float | None = None
        self._step_s = 0.0

    @classmethod
    def from_env(cls, rank: int) -> "Hook":
        """The hook of this process."""
        return cls(Path(os.environ[control.VARIABLE]), rank)

    def before_step(self, step: int, model: torch.nn.Module) -> None:
        """Bring about what is due in `step`; a hang does not return."""
        if self._began is not None:
            self._step_s = time.monotonic() - self._began
        found = control.armed(self._folder, self._rank, step)
        if found:
            path, fields = found
            control.claim(path, fields, step)
            self._bring_about(fields, model)
        if self._slow_left:
            self._slow_left -= 1
            time.sleep((self._factor - 1) * self._step_s)
        # After the sleep: a slow step counts as long as it would have been.
        self._began = time.monotonic()

    def _bring_about(self, fields: dict[str, Any], model: torch.nn.Module) -> None:
        if fields["kind"] == "hang":
            while True:
                time.sleep(POLL_S)
        if fields["kind"] == "nan":
            spoil_gradient(model)
        if fields["kind"] == "slow":
            self._slow_left, self._factor = fields["steps"], fields["factor"]


def spoil_gradient(model: torch.nn.Module) -> None:
    """Make the next gradient of the first trained parameter NaN, once."""
    parameter = next(p for p in model.parameters() if p.requires_grad)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient * float("nan")

    handle = parameter.register_hook(spoil)
