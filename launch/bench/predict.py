"""A training step's communication at counts of ranks that nobody has measured."""

import math
from dataclasses import dataclass
from typing import Any

from ... import UserError
from ...collectives_bench.predict import KnownParts, known_parts
from ...collectives_bench.report.grid import TextTable
from ...collectives_bench.report.tables import number, time
from ...collectives_bench.schema import BenchReport
from ...moe.vocabulary import sized
from ..config import RunConfig
from ..data.config import microbatches
from ..data.tokenizer import load_tokenizer
from ..size.network import measured

LARGEST = 10_000


@dataclass(frozen=True)
class PredictedStep:
    """A step's communication on `ranks` ranks of `nodes` nodes."""

    ranks: int
    nodes: int
    known: KnownParts

    def as_json(self) -> dict[str, Any]:
        """Plain values: seconds by part, and in all; null where a fit is missing."""
        found = self.known
        counts = {"ranks": self.ranks, "nodes": self.nodes}
        return {**counts, **found.parts, "total_s": found.total_s, "missing": [*found.missing]}


def predict(
    report: BenchReport, run: RunConfig, per_node: int, counts: list[int]
) -> list[PredictedStep]:
    """The step of `run` on each count of ranks, every rank's own work unchanged, as far as the
    report goes.

    UserError where a count does not fill whole nodes and expert groups, or no part of a step can
    be predicted at any count.
    """
    model = sized(run.model, load_tokenizer(run.data.tokenizer).vocab_size)
    tokens, data = run.data.micro_batch_size * run.data.seq_len, run.data
    each = microbatches(data.global_batch_size, data.micro_batch_size, run.layout.dp)
    network = measured(report, per_node, run.engine)
    points = []
    for ranks in counts:
        check(ranks, per_node, run.layout.ep)
        layout = run.layout.model_copy(update={"dp": ranks})
        question = network.question(model, layout, tokens, each, run.engine.recompute)
        found = known_parts(network.network, *question)
        points.append(PredictedStep(ranks, -(-ranks // per_node), found))
    if not any(s for point in points for s in point.known.parts.values()):
        lines = dict.fromkeys(text for point in points for text in point.known.missing)
        if lines:
            raise UserError("; ".join(lines))
    return points


def gaps(points: list[PredictedStep]) -> list[str]:
    """What could not be predicted and why: a line for each measurement that is missing."""
    lacking: dict[str, list[PredictedStep]] = {}
    for point in points:
        for text in point.known.missing:
            lacking.setdefault(text, []).append(point)
    lines = []
    for text, where in lacking.items():
        ranks = [str(point.ranks) for point in where]
        span = ranks[0] if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        lines.append(f"not predicted on {span} ranks: {text.removeprefix('report: ')}")
    return lines


def check(ranks: int, per_node: int, ep: int) -> None:
    """Refuse a count that the layout cannot have."""
    if ranks % ep or (ranks > per_node and ranks % per_node):
        raise UserError(
            f"--ranks {ranks}: does not fill whole nodes of {per_node} and groups of layout.ep "
            f"{ep}; give multiples of {math.lcm(per_node, ep)}"
        )


def default_counts(per_node: int, ep: int) -> list[int]:
    """Doubling from the smallest whole layout, up to the last one within 10,000 ranks."""
    least = math.lcm(per_node, ep)
    last = max(least, LARGEST // least * least)
    counts = [least]
    while counts[-1] * 2 < last:
        counts.append(counts[-1] * 2)
    return list(dict.fromkeys([*counts, last]))


def table(points: list[PredictedStep], compute_s: float | None) -> TextTable:
    """A row a count; with the time of the computation also the step's bounds."""
    columns = ["ranks", "nodes", "gradients", "weights", "tokens", "communication"]
    columns += ["step, all overlapped", "step, none"] if compute_s is not None else []
    grid = TextTable("predicted communication of a step", tuple(columns))
    for point in points:
        found, total = point.known, point.known.total_s
        cells = [number(point.ranks), number(point.nodes)]
        cells += [time(found.parts[part]) for part in ("gradients", "weights", "tokens")]
        cells.append(time(total))
        if compute_s is not None and total is None:
            cells += [time(None), time(None)]
        elif compute_s is not None and total is not None:
            cells += [time(max(compute_s, total)), time(compute_s + total)]
        grid.add(*cells)
    return grid
