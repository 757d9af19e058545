"""The points of a sweep, in order: the same on every rank."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from .config import CollectivesConfig
from .groups import Ranks, Setting, settings
from .loads import counts, shares
from .operators import OPERATORS
from .operators.base import ALIGNMENT, DTYPES, Operator, holds, largest
from .schema import Host, Skip
from .sizes import label

Tables = Mapping[str, np.ndarray | None]
"""The numbers in each load's file."""
ABSENT = {
    "node": "no host has two ranks",
    "rail": "the ranks are all on one host",
    "counts": "the first host has one rank",
    "pairs": "one rank has no partner",
}
STAGED = 2
"""Gloo copies what it sends or gathers once more."""


@dataclass(frozen=True)
class Point:
    """One measurement: `size` bytes, before they are cut into whole parts."""

    setting: Setting
    op: str
    dtype: str
    in_place: bool
    load: str | None
    size: int

    @property
    def what(self) -> str:
        """Its name for people."""
        words = [self.op, self.dtype, label(self.size), self.setting.name]
        if self.setting.at_once > 1:
            words.append(f"x{self.setting.at_once}")
        words += [self.load] if self.load else []
        return " ".join([*words, "in place"] if self.in_place else words)

    @property
    def operator(self) -> Operator:
        """What is measured."""
        found: Operator = OPERATORS[self.op]
        return found

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].itemsize

    def count(self, n: int) -> int:
        """Elements (of one part) in a communicator of `n` ranks."""
        return self.operator.count(self.size, n, self.width)


class SweepPlan:
    """The points of `config` on `hosts`, and what it asks for that is not there (`skips`).

    `tables` has `loads.read_load` of every load. UserError where a group or a load does not fit the
    ranks.
    """

    def __init__(
        self,
        config: CollectivesConfig,
        hosts: Sequence[Host],
        device: torch.device,
        tables: Tables,
    ) -> None:
        self._config, self._tables = config, tables
        self._staged = STAGED if device.type == "cpu" else 1
        self.skips: list[Skip] = []
        self.points: list[Point] = []
        sizes = config.sizes(device)
        for kind in dict.fromkeys(config.groups):
            found = settings(kind, hosts, config.at_once)
            if not found:
                self.skips.append(Skip(kind, 0, ABSENT[kind]))
            runs = [list(self._of(setting, sizes)) for setting in found]
            # A pair's sizes apart in time: a moment of other work then slows one of them only.
            order = zip(*runs, strict=True) if kind == "pairs" else runs
            for point in chain.from_iterable(order):
                self._add(point)

    def _of(self, setting: Setting, sizes: list[int]) -> Iterator[Point]:
        config = self._config
        for op in ("send_recv",) if setting.name == "pairs" else dict.fromkeys(config.ops):
            operator: Operator = OPERATORS[op]
            if min(map(len, setting.groups)) < operator.least:
                self._skip(f"{op} {setting.name}", "one rank has no neighbour")
                continue
            for dtype in dict.fromkeys(config.dtypes):
                for in_place in self._forms(op):
                    if not operator.sized:
                        if dtype == config.dtypes[0]:
                            yield Point(setting, op, dtype, in_place, None, 0)
                        continue
                    for load in dict.fromkeys(config.loads) if operator.uneven else (None,):
                        for size in sizes:
                            yield Point(setting, op, dtype, in_place, load, size)

    def _forms(self, op: str) -> list[bool]:
        wanted = self._config.in_place
        found = [form for form in OPERATORS[op].forms if wanted in ("both", form)]
        if not found:
            form = "in place" if wanted else "out of place"
            self._skip(f"{op} {form}", "torch.distributed has no such form")
        return found

    def _skip(self, what: str, reason: str, size: int = 0) -> None:
        skip = Skip(what, size, reason)
        if skip not in self.skips:
            self.skips.append(skip)

    def _add(self, point: Point) -> None:
        n = max(map(len, point.setting.groups))
        if point.operator.uneven:
            for ranks in point.setting.groups:
                self.matrix(point, len(ranks))
        if point.operator.sized and not point.count(n):
            parts = f"{n} parts of {ALIGNMENT} bytes" if point.operator.parted else "one element"
            self._skip(point.what, f"is less than {parts}", point.size)
            return
        self.points.append(point)

    def matrix(self, point: Point, n: int) -> np.ndarray | None:
        """The elements that each of `n` ranks sends to each, [n, n]; None for other operations."""
        if point.load is None:
            return None
        parts = shares(point.load, self._tables[point.load], n, self._config.seed)
        return counts(parts, point.count(n) * n, max(1, ALIGNMENT // point.width))

    def bytes(self, point: Point, ranks: Ranks) -> int:
        """The size as nccl-tests prints it."""
        matrix = self.matrix(point, len(ranks))
        if matrix is not None:
            return largest(matrix) * point.width
        return point.operator.bytes(point.count(len(ranks)), len(ranks), point.width)

    def memory(self, point: Point) -> int:
        """Bytes of the rank that needs most."""
        needs = []
        for ranks in point.setting.groups:
            n, matrix = len(ranks), self.matrix(point, len(ranks))
            plain = point.operator.elements(n, point.count(n), point.in_place)
            needs.append(plain if matrix is None else holds(matrix))
        return max(needs) * point.width * self._staged
