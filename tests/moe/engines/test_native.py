"""The native engine: sharding, expert parallelism and accumulation change no result."""

from pathlib import Path

import pytest
import torch
from engine_runs import Case, curve, resume_all
from ranks import run_ranks

VARIANTS = ((1, 0, 2), (1, 1, 4), (2, 0, 4), (2, 1, 1))
"""(ep, zero, micro-batch) of two data-parallel ranks."""


def two_rank_curves(optimizer: str) -> list[torch.Tensor]:
    return [
        curve(Case("native", ep, zero, optimizer=optimizer), 5, rows) for ep, zero, rows in VARIANTS
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_layouts_agree(optimizer: str) -> None:
    (reference,) = run_ranks(1, curve, Case("native", 1, 1, optimizer=optimizer), 5, 4)
    assert reference[0, 0] - reference[-1, 0] > 0.1
    for rank in run_ranks(2, two_rank_curves, optimizer):
        for got in rank:
            torch.testing.assert_close(got, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dp", [1, 2])
def test_resume_is_bitwise(tmp_path: Path, dp: int) -> None:
    cases = [
        Case("native", ep, zero, precision, optimizer)
        for optimizer in ("adamw", "muon")
        for precision in ("fp32", "bf16")
        for ep, zero in ([(1, 0)] if dp == 1 else [(2, 1), (1, 1), (1, 0)])
    ]
    for rank in run_ranks(dp, resume_all, cases, tmp_path):
        for case, problems in rank.items():
            assert not problems, case
