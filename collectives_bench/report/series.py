"""Measurements that belong on one line of a plot."""

from collections.abc import Iterable
from typing import NamedTuple

from ..schema import Collective


class Series(NamedTuple):
    """All that two points of one curve share; only their size differs."""

    op: str
    dtype: str
    in_place: bool
    group: str
    size: int
    at_once: int
    load: str | None

    @property
    def setting(self) -> str:
        """What tells it from the other series of its operation, in words."""
        words = [self.group, f"n={self.size}", self.dtype]
        words += ["in place"] * self.in_place
        words += [f"{self.at_once} at once"] * (self.at_once > 1)
        return " ".join([*words, self.load] if self.load else words)


def series_of(c: Collective) -> Series:
    """The series of a measurement."""
    return Series(c.op, c.dtype, c.in_place, c.group, len(c.ranks), c.at_once, c.load)


def curves(measured: Iterable[Collective]) -> dict[Series, list[Collective]]:
    """The measurements of every series by size; of groups that ran together only the slowest,
    which the others would wait for."""
    found: dict[Series, dict[int, Collective]] = {}
    for c in measured:
        points = found.setdefault(series_of(c), {})
        if c.bytes not in points or c.p50_s > points[c.bytes].p50_s:
            points[c.bytes] = c
    return {key: [points[size] for size in sorted(points)] for key, points in found.items()}


def is_pair(c: Collective) -> bool:
    """Whether it is one of the pairwise tests, which are too many for a line each."""
    return c.group.startswith("pairs") and len(c.ranks) == 2
