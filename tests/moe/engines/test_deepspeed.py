"""The DeepSpeed engine trains as the native one does, and their checkpoints are the same."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import (
    CLIP,
    DEEPSPEED_LAYOUTS,
    Case,
    curve,
    curves,
    differences,
    load,
    resume_all,
    save,
    start,
    train,
)
from ranks import run_ranks

from moelstrom.moe.config import EngineConfig, LayoutConfig, OptimizerConfig
from moelstrom.moe.engines import ENGINES

TOLERANCE = {
    # The fp32 sum of a step's losses is rounded to 3e-7 of their mean; at most 2e-7 was seen, up
    # to 30 steps on. Expert gradients 1% too large show as 1e-4.
    "fp32": 5e-6,
    # bf16 rounds to 2^-8 = 4e-3, and ZeRO 0 adds gradients in it too; at most 1.3e-3 (losses) and
    # 5e-3 (norms) were seen, and the native engine's own layouts differ by half of that.
    "bf16": 1.5e-2,
}
"""Absolute, of losses (about 3.5 nats) and gradient norms (about 0.9)."""


def agree(
    got: torch.Tensor, expected: torch.Tensor, case: Case, precision: str | None = None
) -> None:
    """`precision` None takes the case's tolerance."""
    torch.testing.assert_close(
        got,
        expected,
        rtol=0,
        atol=TOLERANCE[precision or case.precision],
        msg=lambda text: f"{case}: {text}",
    )


def check_curves(world: int, cases: list[Case], steps: int = 20) -> dict[Case, torch.Tensor]:
    """Every case agrees with the native engine on its layout, and every rank with rank 0."""
    wanted = list(dict.fromkeys([*(case.native for case in cases), *cases]))
    found, *others = run_ranks(world, curves, wanted, steps)
    for case in cases:
        agree(found[case], found[case.native], case)
        for other in others:
            assert torch.equal(other[case], found[case]), case
    return found


def deepspeed(precision: str) -> list[Case]:
    return [Case("deepspeed", ep, zero, precision) for ep, zero in DEEPSPEED_LAYOUTS]


@pytest.mark.slow
def test_trains_as_native_does() -> None:
    found = check_curves(2, deepspeed("fp32") + deepspeed("bf16"))
    for case, got in found.items():
        agree(got, found[Case("native", 1, 1, case.precision)], case)
        if case.zero:
            # Before any update all weights are the same, and gradients add up in fp32.
            agree(got[:1], found[case.native][:1], case, "fp32")
        assert got[0, 0] - got[-1, 0] > 0.3, "the runs must learn"
        assert got[:-1, 1].min() > CLIP, "the runs must clip"


@pytest.mark.slow
def test_muon_tied_embeddings_and_recompute_train_as_native_does() -> None:
    def cases(layouts: tuple, **changed: Any) -> list[Case]:
        return [replace(Case("deepspeed", *layout), **changed) for layout in layouts]

    check_curves(
        2,
        cases(((1, 0), (2, 0)), optimizer="muon")
        + cases(((1, 0), (1, 3), (2, 2)), tied=True)
        + cases(((1, 3), (2, 0), (2, 1)), recompute=True)
        + cases(((1, 2),), precision="bf16", tied=True, recompute=True),
    )


@pytest.mark.slow
def test_resume_is_bitwise(tmp_path: Path) -> None:
    cases = deepspeed("fp32") + deepspeed("bf16")
    cases += [Case("deepspeed", 2, 0, precision, "muon") for precision in ("fp32", "bf16")]
    for rank in run_ranks(2, resume_all, cases, tmp_path):
        for case, problems in rank.items():
            assert not problems, case


def relay(cases: list[Case], path: Path) -> tuple[torch.Tensor, list[str]]:
    """Two steps under each case, each from the checkpoint of the one before: the losses and
    norms, and the tensors that an import did not reproduce bit for bit."""
    engine = start(cases[0])
    rows, problems = [train(engine, 0, 2)], []
    for i, case in enumerate(cases[1:], 1):
        reader = save(engine, path / str(i))
        engine = load(case, reader)
        problems += [f"{case}: {name}" for name in differences(engine, reader)]
        rows.append(train(engine, 2 * i, 2 * i + 2))
    return torch.cat(rows), problems


def relay_all(relays: list[list[Case]], path: Path) -> list[tuple]:
    """Each relay, with the native run without stops that it should equal."""
    results = []
    for i, cases in enumerate(relays):
        straight = curve(cases[0].native, 2 * len(cases))[:-1]
        results.append((*relay(cases, path / str(i)), straight))
    return results


def check_relays(world: int, relays: list[list[Case]], path: Path) -> list[torch.Tensor]:
    """No import changes a bit, and each relay's losses and norms, returned, are those of native
    runs without stops."""
    first, *others = run_ranks(world, relay_all, relays, path)
    for i, cases in enumerate(relays):
        got, problems, straight = first[i]
        assert not problems
        for case, mine, native in zip(cases, got.split(2), straight.split(2), strict=True):
            agree(mine, native, case)
        assert all(torch.equal(other[i][0], got) for other in others)
    return [got for got, _, _ in first]


@pytest.mark.slow
def test_checkpoints_cross_engines_and_stages(tmp_path: Path) -> None:
    """Native to every DeepSpeed layout and back; DeepSpeed between every two stages."""
    engines = [Case("native", 1, 1)]
    for i, case in enumerate(deepspeed("fp32")):
        engines += [case, Case("native", 1 + i % 2, i % 2)]
    stages = [(1, 0), (2, 1), (1, 0), (2, 2), (1, 0), (1, 3), (2, 1), (2, 2), (1, 1), (1, 3)]
    stages += [(2, 2), (1, 3), (2, 0)]
    muon = (("native", 2, 1), ("deepspeed", 1, 0), ("native", 1, 1), ("deepspeed", 2, 0))
    bf16 = [Case("native", 2, 1, "bf16"), *deepspeed("bf16"), Case("native", 1, 0, "bf16")]
    relays = [
        engines,
        [Case("deepspeed", *layout) for layout in stages],
        [Case(*case, optimizer="muon") for case in muon],
        bf16,
    ]
    check_relays(2, relays, tmp_path)


@pytest.mark.slow
def test_experts_with_copies_count_once(tmp_path: Path) -> None:
    """On four ranks with ep 2 two ranks hold each expert: the clipped norm, the gradient's sum
    and the checkpoint count it once, as on the one rank that holds them all."""
    layouts = ((2, 1), (4, 2), (1, 3), (2, 0), (2, 2))
    cases = [Case("deepspeed", *layout) for layout in layouts]
    cases = [Case("native", 2, 1), *cases, Case("native", 1, 1)]
    (got,) = check_relays(4, [cases], tmp_path)
    (whole,) = run_ranks(1, curve, Case("native", 1, 0), len(got), 2)
    agree(got, whole[:-1], cases[0])
    assert whole[:-1, 1].min() > CLIP


def refusals(engine: str, ep: int, zero: int, optimizer: str, compiled: bool) -> list[str]:
    layout = LayoutConfig(dp=2, ep=ep, zero=zero)
    section = EngineConfig(name=engine, compile=compiled)
    update = OptimizerConfig(name=optimizer)
    return list(ENGINES[engine].problems(layout, layout.zero, update, section))


@pytest.mark.parametrize(
    ("ep", "zero", "optimizer", "compiled", "text"),
    [
        (2, 3, "adamw", False, r"ep is 2 with zero 3 .*set zero to 2"),
        (1, 1, "muon", False, r"zero is 1 with optimizer\.name muon .*zero to 0"),
        (2, 2, "muon", False, r"zero is 2 with optimizer\.name muon"),
        (1, 3, "adamw", True, r"zero is 3 with engine\.compile true .*compile to false"),
    ],
)
def test_refuses(ep: int, zero: int, optimizer: str, compiled: bool, text: str) -> None:
    (problem,) = refusals("deepspeed", ep, zero, optimizer, compiled)
    assert re.match(text, problem)
    assert refusals("native", ep, min(zero, 1), optimizer, compiled) == []


@pytest.mark.parametrize(("ep", "zero"), DEEPSPEED_LAYOUTS)
def test_accepts(ep: int, zero: int) -> None:
    assert refusals("deepspeed", ep, zero, "adamw" if zero else "muon", zero < 3) == []
