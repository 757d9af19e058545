"""Every point of a plan, measured by all ranks together.

Ranks that a point leaves out still meet and agree with the others, so that none runs ahead.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

import torch
import torch.distributed as dist

from . import clock
from .codes import Codes
from .config import CollectivesConfig
from .groups import Ranks
from .hardware.run import free_bytes
from .meet import Meeting
from .operators.base import DTYPES, BoundOp, GroupRank
from .plan import Point, SweepPlan
from .results import Found, collective
from .schema import Skip
from .sizes import label

Emit = Callable[..., None]
"""Takes an event's kind and its fields."""
FEWEST = 5
"""Iterations that a point gets whatever they take."""


class Sweep:
    """Measures on this rank. `emit` gets a `step` on every rank, the rest on rank 0."""

    def __init__(
        self,
        config: CollectivesConfig,
        plan: SweepPlan,
        meeting: Meeting,
        device: torch.device,
        emit: Emit,
    ) -> None:
        self._config, self._plan, self._device, self._emit = config, plan, device, emit
        self._meeting, self._rank = meeting, meeting.rank
        self._groups: dict[Ranks, dist.ProcessGroup | None] = {tuple(range(meeting.world)): None}

    def run(self) -> None:
        """Measure every point; each result is emitted at once."""
        for skip in self._plan.skips:
            self._skip(skip)
        total = len(self._plan.points)
        for step, point in enumerate(self._plan.points):
            self._emit("step", step=step, total=total, what=point.what)
            self._meeting.start(point.what)
            self._measure(point)

    def _skip(self, skip: Skip) -> None:
        if self._rank == 0:
            self._emit("skip", value=asdict(skip))

    def _measure(self, point: Point) -> None:
        need = self._plan.memory(point)
        room = self._meeting.least(int(self._config.memory_fraction * free_bytes(self._device)))
        if need > room:
            reason = f"needs {label(need)} on a rank, and {label(room)} may be used"
            self._skip(Skip(point.what, point.size, reason))
            return
        self._report(point, self._found(point))
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def _found(self, point: Point) -> Found | Skip | None:
        """This rank's times; a Skip on every rank where one has no memory for its buffers."""
        case = self._build(point)
        if not self._meeting.least(case is not None) or case is None:
            return Skip(point.what, point.size, "a rank is out of memory")
        return self._try(case, point)

    def _report(self, point: Point, found: Found | Skip | None) -> None:
        if isinstance(found, Skip):
            self._skip(found)
            return
        everyone = self._meeting.gather(found)
        for ranks in point.setting.groups if everyone else ():
            results = {rank: everyone[rank] for rank in ranks} if everyone else {}
            value = collective(point, self._plan.bytes(point, ranks), results)
            self._emit("measurement", value=asdict(value))

    def _build(self, point: Point) -> BoundOp | None:
        """This rank's buffers; an empty case where it looks on, None where they do not fit."""
        group = self._group(point)
        ranks = point.setting.of(self._rank)
        if ranks is None:
            return BoundOp(lambda: None)
        n = len(ranks)
        matrix = self._plan.matrix(point, n)
        dtype = DTYPES[point.dtype]
        member = GroupRank(
            ranks, ranks.index(self._rank), group, self._device, dtype, point.in_place, matrix
        )
        try:
            return point.operator.build(member, point.count(n))
        except RuntimeError as error:
            # A CPU's allocator has no error of its own.
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                return None
            raise

    def _group(self, point: Point) -> dist.ProcessGroup | None:
        """This rank's communicator; None is the default one. Collective over all ranks."""
        setting = point.setting
        if setting.name == "pairs":
            # Two ranks need no communicator of their own, and pairs are many.
            return None
        for ranks in setting.groups:
            if ranks not in self._groups:
                limit = timedelta(seconds=self._config.timeout_s)
                self._groups[ranks] = dist.new_group(list(ranks), timeout=limit)
        mine = setting.of(self._rank)
        return None if mine is None else self._groups[mine]

    def _try(self, case: BoundOp, point: Point) -> Found | None:
        try:
            found = self._run(case, point)
        except (RuntimeError, TimeoutError) as error:
            self._meeting.blame(point.what, error)
            raise
        self._meeting.end(point.what)
        return found

    def _run(self, case: BoundOp, point: Point) -> Found | None:
        ranks = point.setting.of(self._rank)
        wrong = None
        if ranks and point.size and self._config.check:
            wrong = self._check(case, point, ranks)
        iterations = self._iterations(self._warm_up(case))
        self._meeting.start(point.what)
        if ranks is None:
            return None
        # Who leaves the meeting late would be waited for: one call brings the ranks together.
        case.call()
        late = self._config.sleep(self._rank, point.op)
        limit = self._config.timeout_s
        return Found(clock.measure(case.call, iterations, self._device, limit, late), wrong)

    def _check(self, case: BoundOp, point: Point, ranks: Ranks) -> int:
        codes = Codes(ranks, DTYPES[point.dtype], self._config.seed)
        case.prepare(codes)
        case.call()
        clock.finish(self._device, self._config.timeout_s)
        wrong = case.wrong(codes)
        case.clear()
        return wrong

    def _warm_up(self, case: BoundOp) -> float:
        """Seconds of a call."""
        start = time.perf_counter()
        for _ in range(self._config.warmup):
            case.call()
        clock.finish(self._device, self._config.timeout_s)
        return (time.perf_counter() - start) / max(1, self._config.warmup)

    def _iterations(self, seconds: float) -> int:
        """As many as were asked for, or fit the budget on the slowest rank."""
        fit = int(self._config.budget_s / max(self._meeting.most(seconds), 1e-9))
        return min(self._config.iterations, max(FEWEST, fit))
