"""`moelstrom kernels tune`: find the tile configs of the grouped expert MLP on this GPU."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch

from ... import UserError
from ..grouped_mlp.configs import OPERATORS, shape_class
from ..targets import Target
from . import accuracy
from .candidates import candidates, describe, fastest, now
from .cases import TOKENS, WIDTHS, Width, make
from .products import Config, Operands, check, dense, draw, flops, launch, of_case
from .run import Say, environment
from .timing import DeviceLostError, Rounds, burst, free, measure, reason, still_there

METHOD = (
    "Balanced loads. Every config in a burst of calls back to back, median (burst_tflops); then "
    "the fastest, the config in use and the dense product in turn, round after round, with cold "
    "L2, as kernels bench times (tflops): the fastest of these is the width's winner. The winner "
    'of "*" has the best geometric mean of burst rates over the widths. dense: torch.mm (cuBLAS or '
    "hipBLASLt) with one weight matrix for all rows, no activation."
)
ROUNDS = Rounds(rounds=15, slow_rounds=8)
FINALISTS = 4
DENSE = "dense"
COUNTS = [130, 0, 1, 300, 64, 0, 17, 128, 5, 0, 0, 256, 31, 90, 0, 2]
"""Rows of each expert in the check: empty groups, single rows, tiles cut anywhere."""
SIZES = ((384, 320), (512, 512))
"""(D, F) of the check: with cut tiles, and without, as the benchmark's widths are compiled."""
PROCESS_BYTES = 2 << 30
"""Device memory a checking process may take."""

Trial = tuple[str, Config]
Row = dict[str, Any]


def select(names: list[str] | None) -> list[str]:
    """The operators of those full names, or all; a UserError lists the known ones."""
    known = {f"grouped_mlp.{operator}": operator for operator in OPERATORS}
    for name in names or ():
        if name not in known:
            raise UserError(f"operator {name}: no tiles to tune; one of {', '.join(known)}")
    return list(dict.fromkeys(known[name] for name in names)) if names else list(OPERATORS)


class Tune:
    """One run; `results` grows as it goes, so that what was measured before a failure is kept."""

    def __init__(self, operators: list[str], target: Target, say: Say) -> None:
        self.operators, self.target, self.say = operators, target, say
        self.results: dict[str, Any] = {
            **environment(),
            "target": target.name,
            "tokens": TOKENS,
            "method": METHOD,
            "tolerances": {"whole": accuracy.WHOLE, "row": accuracy.ROW},
            "dropped": [],
            "timings": [],
            "winners": {},
            "failed": [],
        }

    def run(self) -> dict[str, Any]:
        """Check, time, choose; a lost GPU ends the timing, and operators it left short of a width
        get no winner."""
        good = self._check()
        try:
            for width in WIDTHS:
                self._width(width, good)
                free()
        except DeviceLostError as error:
            self._fail("GPU lost", error)
        self.results["winners"] = winners(self.results["timings"])
        return self.results

    def _fail(self, what: str, error: Exception) -> None:
        self.results["failed"].append({"what": what, "reason": reason(error)})
        self.say(f"failed: {what}: {reason(error)}")

    def _check(self) -> dict[str, list[Config]]:
        """The configs that compile and compute the right thing."""
        jobs = [(o, c) for o in self.operators for c in candidates(o, self.target)]
        self.say(f"compiling and checking {len(jobs)} configs, in parallel")
        good = list(jobs)
        for (operator, config), problem in check_all(jobs):
            if problem:
                good.remove((operator, config))
                dropped = {"operator": operator, "config": config, "reason": problem}
                self.results["dropped"].append(dropped)
                self.say(f"  dropped {operator} {describe(config)}: {problem}")
        return {o: [c for name, c in good if name == o] for o in self.operators}

    def _width(self, width: Width, good: dict[str, list[Config]]) -> None:
        operands = of_case(make(width, "balanced"))
        for operator in self.operators:
            row = self._time(operator, width, operands, good[operator])
            self.results["timings"].append(row)
            best = max((rate["tflops"] or 0.0 for rate in row["rates"]), default=0.0)
            self.say(
                f"{width} {operator}: {best:.0f} TFLOP/s, dense {row['dense_tflops'] or 0:.0f}"
            )

    def _time(self, operator: str, width: Width, t: Operands, configs: list[Config]) -> Row:
        work = flops(operator, len(t.x), width.hidden, width.ffn) / 1e9
        current = now(operator, self.target, width)
        rates = [row for c in configs if (row := self._burst(operator, t, c, work))]
        rates.sort(key=lambda row: -row["burst_tflops"])
        finals = [r for i, r in enumerate(rates) if i < FINALISTS or r["config"] == current]
        beside = self._finals(operator, width, t, finals)
        return {
            "operator": operator,
            "key": shape_class(width.hidden, width.ffn),
            "width": str(width),
            "dense_tflops": beside,
            "now": current,
            "rates": rates,
        }

    def _finals(self, operator: str, width: Width, t: Operands, rows: list[Row]) -> float | None:
        """Time the rows' configs again, beside the dense product, whose rate is returned."""
        work = flops(operator, len(t.x), width.hidden, width.ffn) / 1e9
        calls = {f"{i}": launch(operator, t, row["config"]) for i, row in enumerate(rows)}

        def failed(name: str, error: Exception) -> None:
            what = DENSE if name == DENSE else describe(rows[int(name)]["config"])
            self._fail(f"{operator} {what} at {width}", error)

        found = measure({**calls, DENSE: dense(operator, t)}, ROUNDS, failed)
        rates = {name: work / timing.median_ms for name, timing in found.items()}
        for i, row in enumerate(rows):
            row["tflops"] = rates.get(f"{i}")
        return rates.get(DENSE)

    def _burst(self, operator: str, t: Operands, config: Config, work: float) -> Row | None:
        try:
            rate = work / burst(launch(operator, t, config))
        # A config that fails at this size only leaves the others to be timed.
        except Exception as error:
            self._fail(f"{operator} {describe(config)}", error)
            still_there(error)
            return None
        return {"config": config, "burst_tflops": rate, "tflops": None}


def winners(timings: list[Row]) -> dict[str, dict[str, Config]]:
    """The fastest config by operator ("grouped_mlp.gate_up") and shape class, and "*"; only of
    operators that every width has a time of."""
    found = {}
    for operator in dict.fromkeys(row["operator"] for row in timings):
        mine = [row for row in timings if row["operator"] == operator]
        classes = {row["key"]: best["config"] for row in mine if (best := fastest(row))}
        star = _steadiest(mine)
        if len(classes) == len(WIDTHS) and star:
            found[f"grouped_mlp.{operator}"] = {**classes, "*": star}
    return found


def _steadiest(rows: list[Row]) -> Config | None:
    """The best geometric mean of burst rates among the configs that have one in every row."""
    scores: list[tuple[float, Config]] = []
    for rate in rows[0]["rates"]:
        same = [r for row in rows for r in row["rates"] if r["config"] == rate["config"]]
        if len(same) == len(rows):
            scores.append((sum(math.log(r["burst_tflops"]) for r in same), rate["config"]))
    return max(scores, key=lambda score: score[0])[1] if scores else None


def attempt(job: Trial) -> str | None:
    """Compile one config and hold it against fp32: the problem, if any. Raises DeviceLostError
    where the GPU answers no more."""
    operator, config = job
    try:
        torch.manual_seed(0)
        checks = [c for size in SIZES for c in check(operator, draw(COUNTS, *size), config)]
    # Whatever compiler or launch raises is this config's failure.
    except Exception as error:
        still_there(error)
        return reason(error)
    bad = [f"{c.what} off by {c.whole:.1e}, worst row {c.row:.1e}" for c in checks if not c.ok]
    return "; ".join(dict.fromkeys(bad)) or None


def check_all(jobs: list[Trial]) -> Iterator[tuple[Trial, str | None]]:
    """Attempt every job in processes that share the GPU, as they finish.

    A kernel that takes its process or the process's GPU context down costs the job its place, not
    the run: jobs lost that way run again, each in a process of its own.
    """
    workers = _workers(len(jobs))
    lost: list[Trial] = []
    with _pool(workers) as pool:
        pending: dict[Future[str | None], Trial] = {pool.submit(attempt, j): j for j in jobs}
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                job = pending.pop(future)
                if isinstance(future.exception(), BrokenProcessPool | DeviceLostError):
                    lost.append(job)
                else:
                    yield job, future.result()
    with ThreadPoolExecutor(workers) as threads:
        yield from zip(lost, threads.map(_alone, lost), strict=True)


def _workers(jobs: int) -> int:
    free_bytes, _ = torch.cuda.mem_get_info()
    return max(1, min(jobs, len(os.sched_getaffinity(0)), free_bytes // PROCESS_BYTES))


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: a GPU context does not outlive a fork.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _alone(job: Trial) -> str | None:
    with _pool(1) as pool:
        try:
            return pool.submit(attempt, job).result()
        except (BrokenProcessPool, DeviceLostError) as error:
            return reason(error)
