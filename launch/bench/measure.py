"""The measuring of one rank, whatever started it and whoever listens."""

from collections.abc import Callable

from ...collectives_bench import worker as collectives_worker
from ...collectives_bench.config import CollectivesConfig
from ...collectives_bench.hardware import run as hardware_run
from ..train.hardware import rank_device
from ..train.process_group import process_group
from .config import Run, own_config

Emit = Callable[..., None]
"""Takes an event's kind and its fields."""


def measure(run: Run, emit: Emit) -> None:
    """Measure on this rank; collective over env://'s ranks."""
    device, config = rank_device(), own_config(run)
    if isinstance(config, CollectivesConfig):
        with process_group(device, config.timeout_s):
            collectives_worker.run(config, device, emit)
    else:
        with process_group(device):
            hardware_run.run(config, device, emit)
