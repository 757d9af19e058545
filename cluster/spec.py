"""What a group of workers is, and how its run ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
"""A JSON object with at least `kind` and `time` (UNIX seconds)."""
OnEvent = Callable[[int | None, Event], None]
"""Takes the rank (None: the whole group) and its event."""

SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable under which Python imports nothing from the current or a script's folder."""
USER_ERROR_EXIT = 2
"""Exit code of a worker that met a user's mistake: a restart would meet it again."""
ROLLBACK_EXIT = 3
"""Exit code of a worker that asks for a restart from an earlier checkpoint."""


@dataclass(frozen=True)
class WorkerSpec:
    """An opaque program, started once per rank.

    The worker finds RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK and NODE_RANK,
    MASTER_ADDR, MASTER_PORT, OMP_NUM_THREADS, MOELSTROM_RESTART (0 at first) and
    MOELSTROM_GENERATION (the group's number, which only grows) in its environment. Where the
    cluster can see to that, as Ray does, each worker sees its own GPU only: the device to use is
    `LOCAL_RANK % device_count`. On SIGTERM it saves, emits `preempted` and exits 0.
    """

    command: tuple[str, ...]
    world_size: int
    world_sizes: tuple[int, ...] = ()
    """Sizes that the program can run on, descending; the first, the default, is `world_size`."""

    def __post_init__(self) -> None:
        """Fill in the default. Raises ValueError when the sizes do not descend from world_size."""
        sizes = self.world_sizes or (self.world_size,)
        if sizes[0] != self.world_size or list(sizes) != sorted(set(sizes), reverse=True):
            raise ValueError(f"world_sizes {sizes}: must descend from world_size {self.world_size}")
        object.__setattr__(self, "world_sizes", sizes)


@dataclass(frozen=True)
class Outcome:
    """The end of a run: exit code (0, 2 for a user's mistake, else the fault's), and its story."""

    exit_code: int
    restarts: int
    """How often the group was started again, for whatever reason."""
    message: str
    timeline: tuple[Event, ...]
    """Milestones, in order, as they went over the wire."""
    preempted: bool = False
    """The workers saved and left on SIGTERM; the run is not finished."""
