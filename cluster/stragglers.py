"""Names a rank whose own work takes longer than its peers'."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from .events import Step

WINDOW = 20
"""Steps that are compared at a time, by their median."""
OWN_WORK = ("data", "compute")
"""What a rank does by itself; the others' slowness shows in the parts beside these."""
MIN_EXCESS_S = 0.002
"""Less than this is noise, whatever its share."""
KEPT_STEPS = 10_000
"""Steps of a rank that wait for the others': answers bring many at a time."""
QUIET_S = 60.0
"""After a rank was named, before it is named again."""

Parts = Mapping[str, float]
"""Seconds of a step by part."""


@dataclass(frozen=True)
class Straggler:
    """`factor` is the rank's own work over its peers', `part` what exceeds theirs most."""

    rank: int
    part: str
    factor: float
    own_s: float
    peers_s: float


class Stragglers:
    """Takes the `step` events of `size` ranks, a window after the other."""

    def __init__(
        self, size: int, factor: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Name ranks that are `factor` slower than the median of the others."""
        self._size, self._factor, self._clock = size, factor, clock
        self._steps: dict[int, list[Parts]] = {rank: [] for rank in range(size)}
        self._named: dict[int, float] = {}

    def take(self, rank: int, event: Step) -> list[Straggler]:
        """Note a step; the stragglers when it completes a window of all ranks."""
        parts = event.parts
        if not parts or self._size < 2:
            return []
        self._steps[rank].append(parts)
        if len(self._steps[rank]) > KEPT_STEPS:  # Some rank tells no parts.
            self._steps = {rank: [] for rank in range(self._size)}
        if any(len(steps) < WINDOW for steps in (self._steps[rank], *self._steps.values())):
            return []
        typical = {r: typical_parts(steps[:WINDOW]) for r, steps in self._steps.items()}
        for steps in self._steps.values():
            del steps[:WINDOW]
        found = find_stragglers(typical, self._factor)
        return [straggler for straggler in found if self._is_news(straggler.rank)]

    def _is_news(self, rank: int) -> bool:
        now = self._clock()
        if now - self._named.get(rank, -QUIET_S) < QUIET_S:
            return False
        self._named[rank] = now
        return True


def typical_parts(steps: list[Parts]) -> dict[str, float]:
    """The median step's own work, by part."""
    return {part: median(step.get(part, 0.0) for step in steps) for part in OWN_WORK}


def find_stragglers(typical: Mapping[int, Parts], factor: float) -> list[Straggler]:
    """Ranks whose own work exceeds `factor` times the median of the others'."""
    found = []
    for rank, parts in typical.items():
        peers = [other for r, other in typical.items() if r != rank]
        peer = {part: median(p[part] for p in peers) for part in OWN_WORK}
        own_s, peers_s = sum(parts.values()), median(sum(p.values()) for p in peers)
        if own_s <= factor * peers_s or own_s - peers_s <= MIN_EXCESS_S:
            continue
        part = max(OWN_WORK, key=lambda name: parts[name] - peer[name])
        found.append(Straggler(rank, part, own_s / max(peers_s, 1e-9), own_s, peers_s))
    return found
