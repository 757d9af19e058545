"""What the harness adds: its figure over a bare torch loop's, in alternation, as JSON.

`python -m moelstrom.collectives_bench.hardware.overhead`
"""

import json
from collections.abc import Iterator
from itertools import chain
from statistics import median
from typing import Any

import torch

from . import PROBES
from .clock import Times, bare, measure
from .config import HardwareConfig
from .probe import Probe

ROUNDS = 15
BUDGET_S = 0.05


def compare(device: torch.device, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """For a few cases the median of both means in seconds, and the median over rounds of harness
    over bare loop. A round runs both over as many calls on the same operands, in turns of order."""
    return [_compare(probe, device, rounds) for probe in _probes(device)]


def _compare(probe: Probe, device: torch.device, rounds: int) -> dict[str, Any]:
    call = probe.make()
    calls = _calls(measure(call, device, BUDGET_S))
    pairs = []
    for index in range(rounds):
        before = bare(call, device, calls) if index % 2 else None
        times = measure(call, device, BUDGET_S)
        plain = before or bare(call, device, calls)
        calls = _calls(times)
        pairs.append((times.mean_s, plain))
    return {
        "case": probe.name,
        "harness_s": median(a for a, _ in pairs),
        "bare_s": median(b for _, b in pairs),
        "ratio": median(a / b for a, b in pairs),
    }


def _calls(times: Times) -> int:
    return times.samples * times.calls


def _probes(device: torch.device) -> Iterator[Probe]:
    gpu = device.type == "cuda"
    side = 4096 if gpu else 512
    config = HardwareConfig(
        min_bytes=2**30 if gpu else 2**24,
        max_bytes=2**30 if gpu else 2**24,
        gemm_shapes=((side // 4,) * 3, (side,) * 3),
        gemm_dtypes=("bf16",) if gpu else ("fp32",),
        seq_lens=(4096 if gpu else 512,),
    )
    kinds = (PROBES[name] for name in ("memory", "gemm", "attention"))
    yield from chain.from_iterable(kind.probes(config, device) for kind in kinds)


if __name__ == "__main__":
    used = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(compare(used), indent=1))
