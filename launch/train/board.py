"""A run's curves for TensorBoard."""

from pathlib import Path
from typing import Any

from .records import Record, to_json


class Board:
    """Plots the numbers of every record that has a step; its curves end where it cannot."""

    def __init__(self, folder: Path) -> None:
        # Imported here: it brings torch, which no reader of a log needs.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._problem = ""
        self._writer: Any = None
        try:
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            self._problem = self._give_up(error)

    def plot(self, record: Record) -> str:
        """Plot it; returns, once, why nothing is plotted any more. Never raises OSError."""
        problem, self._problem = self._problem, ""
        if self._writer is None or record.step is None:
            return problem
        try:
            for key, value in _scalars(to_json(record)):
                if key not in ("step", "time"):
                    self._writer.add_scalar(f"{record.kind}/{key}", value, record.step)
        except OSError as error:
            return self._give_up(error)
        return problem

    def _give_up(self, error: OSError) -> str:
        self._writer = None
        return f"{self._folder}: {error.strerror or error}; the curves end here, training goes on"

    def close(self) -> None:
        """Flush and close."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError:
            # The records have all of it.
            self._writer = None


def _scalars(record: dict[str, Any]) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            flat += [(f"{key}/{name}", number) for name, number in _scalars(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat.append((key, value))
    return flat
