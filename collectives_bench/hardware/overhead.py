"""What the harness adds: its figure over a bare torch loop's, in alternation, as JSON.

`python -m moelstrom.collectives_bench.hardware.overhead`
"""

import json
from collections.abc import Iterator
from itertools import chain
from statistics import median
from typing import Any

import torch

from . import attention, gemm, memory
from .case import Probe
from .clock import Times, bare, measure
from .config import HardwareConfig

ROUNDS = 15
BUDGET_S = 0.05


def compare(device: torch.device, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """For a few cases the median of both means in seconds, and the median over rounds of harness
    over bare loop. A round runs both over as many calls on the same operands, in turns of order."""
    return [_compare(case, device, rounds) for case in _cases(device)]


def _compare(case: Probe, device: torch.device, rounds: int) -> dict[str, Any]:
    call = case.make()
    calls = _calls(measure(call, device, BUDGET_S))
    pairs = []
    for index in range(rounds):
        before = bare(call, device, calls) if index % 2 else None
        times = measure(call, device, BUDGET_S)
        plain = before or bare(call, device, calls)
        calls = _calls(times)
        pairs.append((times.mean_s, plain))
    return {
        "case": case.name,
        "harness_s": median(a for a, _ in pairs),
        "bare_s": median(b for _, b in pairs),
        "ratio": median(a / b for a, b in pairs),
    }


def _calls(times: Times) -> int:
    return times.samples * times.calls


def _cases(device: torch.device) -> Iterator[Probe]:
    gpu = device.type == "cuda"
    side = 4096 if gpu else 512
    config = HardwareConfig(
        min_bytes=2**30 if gpu else 2**24,
        max_bytes=2**30 if gpu else 2**24,
        gemm_shapes=((side // 4,) * 3, (side,) * 3),
        gemm_dtypes=("bf16",) if gpu else ("fp32",),
        seq_lens=(4096 if gpu else 512,),
    )
    benches = memory.cases, gemm.cases, attention.cases
    yield from chain.from_iterable(cases(config, device) for cases in benches)


if __name__ == "__main__":
    used = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(compare(used), indent=1))
