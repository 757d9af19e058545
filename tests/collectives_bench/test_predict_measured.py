"""The predictor against real Gloo processes: fits of single collectives, then a whole step's.

Sizes of the step lie between those of the sweep. Sweep and step alternate in short slices, and each
turn makes its own prediction: a busy machine spoils some turns, and their median is compared.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import network_reports as nr
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from moelstrom import UserError
from moelstrom.collectives_bench.fit import fit_report
from moelstrom.collectives_bench.network import Group, Network
from moelstrom.collectives_bench.predict import Call, RankLayout, StepVolume, calls, predict
from moelstrom.collectives_bench.schema import Collective

STEP = StepVolume(
    dense=1_300_000,
    experts=700_000,
    width=4,
    bucket_bytes=1_500_000,
    moe_layers=2,
    num_experts=8,
    top_k=2,
    hidden=192,
    tokens=700,
    microbatches=2,
)
SIZES = tuple(2**i for i in range(6, 24, 2))
TURNS, TRIES = 9, 3
TOLERANCE = 0.15
OPS: dict[str, Callable[..., object]] = {
    "reduce_scatter": dist.reduce_scatter_tensor,
    "all_gather": dist.all_gather_into_tensor,
    "all_to_all": dist.all_to_all_single,
    "all_to_all_v": dist.all_to_all_single,
}
Teams = dict[Group, dist.ProcessGroup]


def _teams(layout: RankLayout) -> Teams:
    """This rank's process group of each kind, with how many run at once."""
    rank, found = dist.get_rank(), {}
    splits = [[*range(k, k + layout.ep)] for k in range(0, layout.dp, layout.ep)]
    strided = [[*range(r, layout.dp, layout.ep)] for r in range(layout.ep)]
    for parts in ([[*range(layout.dp)]], splits, strided):
        for ranks in parts:
            group = dist.new_group(ranks)
            if rank in ranks:
                found[Group(len(ranks), len(ranks), len(parts))] = group
    return found


def _collective(op: str, size: float, team: dist.ProcessGroup) -> Callable[[], object]:
    n = dist.get_world_size(team)
    elements = max(1, round(size / 4 / n))
    whole, part = torch.zeros(n * elements), torch.zeros(elements)
    out, given = {
        "reduce_scatter": (part, whole),
        "all_gather": (whole, part),
    }.get(op, (torch.zeros(n * elements), whole))
    return lambda: OPS[op](out, given, group=team)


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """Of one run, on the slowest rank."""
    run()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    mean = torch.tensor((time.perf_counter() - start) / repeats)
    dist.all_reduce(mean, dist.ReduceOp.MAX)
    return mean.item()


def _turns(layout: RankLayout) -> list[tuple[list[Collective], float]]:
    """Of each turn the sweep's measurements and the step's time."""
    teams = _teams(layout)
    wanted = calls(STEP, layout)
    kinds = {("all_to_all" if "all_to" in c.op else c.op, c.group): None for c in wanted}
    points = [(op, group, size) for op, group in kinds for size in SIZES]
    sweep = {p: _collective(p[0], p[2], teams[p[1]]) for p in points}
    step = _step(wanted, teams)
    return [_turn(sweep, step) for _ in range(TURNS)]


def _turn(
    sweep: dict[tuple[str, Group, int], Callable[[], object]], step: Callable[[], None]
) -> tuple[list[Collective], float]:
    found, steps = [], []
    for (op, group, size), run in sweep.items():
        # About as long as a step: what the barrier leaves uneven weighs alike.
        taken = _seconds(run, 64 if size < 2**17 else 8)
        found.append(nr.measurement(op, range(group.size), size, taken, at_once=group.at_once))
        steps.append(_seconds(step, 1))
    return found, statistics.median(steps)


def _step(wanted: list[Call], teams: Teams) -> Callable[[], None]:
    runs = [(_collective(c.op, c.bytes, teams[c.group]), round(c.times)) for c in wanted]

    def step() -> None:
        for run, times in runs:
            for _ in range(times):
                run()

    return step


def _off(layout: RankLayout) -> float:
    """Predicted over measured time, less 1: the median of the turns."""
    ratios = []
    for found, measured in run_ranks(layout.dp, _turns, layout)[0]:
        network = Network(fit_report(nr.report(found, world=layout.dp)))
        # Other work can spoil a turn so that its times do not grow with the size.
        with suppress(UserError):
            ratios.append(predict(network, STEP, layout).total_s / measured - 1)
    assert len(ratios) > TURNS / 2
    off = statistics.median(ratios)
    print(f"{layout}: off by {off:+.1%}")
    return off


@pytest.mark.slow
@pytest.mark.parametrize("layout", [RankLayout(2, 2, 8), RankLayout(4, 2, 8)])
def test_a_steps_collectives_take_as_long_as_predicted(layout: RankLayout) -> None:
    # Other work on the machine may spoil a measurement; a wrong predictor is wrong each time.
    assert any(abs(_off(layout)) < TOLERANCE for _ in range(TRIES))
