"""What the harness adds: its loop over a bare torch loop, in alternation, as JSON on rank 0.

`torchrun --nproc-per-node N -m moelstrom.collectives_bench.overhead`, or `python -m` of it as one
process.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist

from . import clock
from .meet import Meeting
from .operators import OPERATORS
from .operators.base import GroupRank

SIZES = (2**20, 2**22, 2**24)
ROUNDS = 101
ITERATIONS = 10
TIMEOUT_S = 120.0
RUNS = ("bare", "harness", "control")

Loop = Callable[[int], None]


def compare(
    device: torch.device,
    sizes: tuple[int, ...] = SIZES,
    rounds: int = ROUNDS,
    iterations: int = ITERATIONS,
) -> list[dict[str, Any]]:
    """For some operations and sizes the bare loop's seconds of an iteration (`bare_s`, median over
    rounds) and, as medians of the rounds' ratios to it, the wall time of the harness's loop
    (`wall`), the mean that it reports (`reported`), and the bare loop run once more (`control`:
    what the machine's own noise makes of two equal loops). On rank 0; collective over all ranks.

    A round runs the three loops, in turns of order; its times are means over the ranks.
    """
    meeting, found = Meeting(TIMEOUT_S), []
    for name, size, call, bare in _cases(device, meeting, sizes):
        rows = []
        for index in range(rounds):
            row: dict[str, float] = {}
            for turn in range(len(RUNS)):
                kind = RUNS[(index + turn) % len(RUNS)]
                meeting.start(name)
                call()
                clock.finish(device, TIMEOUT_S)
                if kind == "harness":
                    row |= _harness(call, iterations, device)
                else:
                    row[kind] = _bare(bare, iterations, device)
            rows.append(row)
        everyone = meeting.gather(rows)
        if everyone:
            found.append({"op": name, "bytes": size, **_summary(everyone)})
    return found


def _harness(call: clock.Call, iterations: int, device: torch.device) -> dict[str, float]:
    """Seconds of an iteration by the wall, and as reported."""
    start = time.perf_counter()
    times = clock.measure(call, iterations, device, TIMEOUT_S)
    wall = time.perf_counter() - start
    return {"wall": wall / iterations, "reported": sum(times) / iterations}


def _bare(loop: Loop, iterations: int, device: torch.device) -> float:
    start = time.perf_counter()
    loop(iterations)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / iterations


def _summary(everyone: list[list[dict[str, float]]]) -> dict[str, float]:
    rounds = [
        {key: mean(row[key] for row in ranks) for key in ranks[0]}
        for ranks in zip(*everyone, strict=True)
    ]
    keys = ("wall", "reported", "control")
    ratios = {key: median(r[key] / r["bare"] for r in rounds) for key in keys}
    return {"bare_s": median(r["bare"] for r in rounds), **ratios}


def _cases(
    device: torch.device, meeting: Meeting, sizes: tuple[int, ...]
) -> Iterator[tuple[str, int, clock.Call, Loop]]:
    """Name, size, the harness's call, and the loop that anybody would write, on its buffers."""
    ranks = tuple(range(meeting.world))
    for size in sizes:
        for name, loop in LOOPS.items():
            op = OPERATORS[name]
            member = GroupRank(ranks, meeting.rank, None, device, torch.float32, op.forms[0])
            bound = op.build(member, op.count(size, meeting.world, 4))
            bound.clear()
            yield name, size, bound.call, loop(*bound.buffers)


def _all_reduce(x: torch.Tensor) -> Loop:
    def loop(iterations: int) -> None:
        for _ in range(iterations):
            dist.all_reduce(x)

    return loop


def _all_to_all(sent: torch.Tensor, got: torch.Tensor) -> Loop:
    def loop(iterations: int) -> None:
        for _ in range(iterations):
            dist.all_to_all_single(got, sent)

    return loop


LOOPS: dict[str, Callable[..., Loop]] = {"all_reduce": _all_reduce, "all_to_all": _all_to_all}


def main() -> None:
    """Join env://'s ranks, or be the only one, and print."""
    cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        device_id=device if cuda else None,
        **({} if "RANK" in os.environ else alone),
    )
    found = compare(device)
    if found:
        print(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
