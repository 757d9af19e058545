"""A training step's communication at counts of ranks that nobody has measured."""

import math
from dataclasses import dataclass

from ... import UserError
from ...collectives_bench.report.grid import Grid
from ...collectives_bench.report.tables import number, time
from ...collectives_bench.schema import Report
from ...moe.sizing.communication import Traffic
from ...moe.vocabulary import sized
from ..config import RunConfig
from ..data.config import microbatches
from ..data.tokenizer import load_tokenizer
from ..size.network import measured

LARGEST = 10_000


@dataclass(frozen=True)
class PredictedStep:
    """A step's communication on `ranks` ranks of `nodes` nodes, in seconds."""

    ranks: int
    nodes: int
    traffic: Traffic

    @property
    def total_s(self) -> float:
        """Every collective, one after the other."""
        return self.traffic.gradients + self.traffic.weights + self.traffic.tokens


def predict(
    report: Report, run: RunConfig, per_node: int, counts: list[int]
) -> list[PredictedStep]:
    """The step of `run` on each count of ranks, every rank's own work unchanged.

    UserError where a count does not fill whole nodes and expert groups, or a fit is missing.
    """
    model = sized(run.model, load_tokenizer(run.data.tokenizer).vocab_size)
    tokens, data = run.data.micro_batch_size * run.data.seq_len, run.data
    each = microbatches(data.global_batch_size, data.micro_batch_size, run.layout.dp)
    network = measured(report, per_node, run.engine)
    points = []
    for ranks in counts:
        check(ranks, per_node, run.layout.ep)
        layout = run.layout.model_copy(update={"dp": ranks})
        traffic = network.predict(model, layout, tokens, each, run.engine.recompute)
        points.append(PredictedStep(ranks, -(-ranks // per_node), traffic))
    return points


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


def table(points: list[PredictedStep], compute_s: float | None) -> Grid:
    """A row a count; with the time of the computation also the step's bounds."""
    columns = ["ranks", "nodes", "gradients", "weights", "tokens", "communication"]
    columns += ["step, all overlapped", "step, none"] if compute_s is not None else []
    grid = Grid("predicted communication of a step", tuple(columns))
    for point in points:
        t = point.traffic
        cells = [number(point.ranks), number(point.nodes)]
        cells += [time(s) for s in (t.gradients, t.weights, t.tokens, point.total_s)]
        if compute_s is not None:
            cells += [time(max(compute_s, point.total_s)), time(compute_s + point.total_s)]
        grid.add(*cells)
    return grid
