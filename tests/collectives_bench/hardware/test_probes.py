"""Every probe does what its name says, and counts what it does."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_reports
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from moelstrom.collectives_bench.caches import cache_bytes, host_cache_bytes
from moelstrom.collectives_bench.hardware import (
    PROBES,
    attention,
    copies,
    experts,
    gemm,
    memory,
    probe,
)
from moelstrom.collectives_bench.hardware.config import HardwareConfig
from moelstrom.collectives_bench.hardware.run import run
from moelstrom.collectives_bench.hardware.summary import summarise
from moelstrom.collectives_bench.report import plots
from moelstrom.collectives_bench.schema import Hardware

CPU = torch.device("cpu")
SMALL = HardwareConfig(
    min_bytes=1024,
    max_bytes=4096,
    gemm_shapes=((8, 16, 24),),
    gemm_dtypes=("fp32",),
    model_shapes=(("qkv", 4, 8, 16),),
    expert_shapes=((10, 16, 24, 3),),
    seq_lens=(32,),
    heads=4,
    kv_heads=2,
    head_dim=8,
)


@pytest.mark.parametrize(
    "kind, value", [("copy", 1), ("scale", 3), ("triad", 4), ("read", 256), ("write", 2)]
)
def test_memory_kinds_move_what_they_name(kind: str, value: float) -> None:
    found = [c for c in memory.probes(SMALL, CPU) if c.kind == kind]
    assert [c.shape["bytes"] for c in found] == [1024, 4096]
    out = found[0].make()()
    assert isinstance(out, torch.Tensor) and (out == value).all()
    buffers = {"copy": 2, "scale": 2, "triad": 3, "read": 1, "write": 1}[kind]
    assert found[0].work == found[0].bytes == found[0].shape["moved"] == buffers * 1024


def counted(call: probe.Call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_gemm_flops_are_those_that_run() -> None:
    sweep, model = gemm.probes(SMALL, CPU)
    assert (sweep.kind, sweep.shape) == ("sweep", {"M": 8, "N": 16, "K": 24})
    assert (model.kind, model.shape) == ("qkv", {"M": 4, "N": 8, "K": 16})
    for found in (sweep, model):
        assert counted(found.make()) == found.work
        out = found.make()()
        assert isinstance(out, torch.Tensor)
        assert list(out.shape) == [found.shape["M"], found.shape["N"]]


def test_expert_flops_are_those_of_three_products_a_row() -> None:
    forward, both = experts.probes(SMALL, CPU)
    assert forward.work == 2 * 10 * 3 * (16 * 24) and both.work == 3 * forward.work
    out = forward.make()()
    assert isinstance(out, torch.Tensor) and out.shape == (10, 16) and not out.requires_grad
    gradients = both.make()()
    assert isinstance(gradients, tuple)
    assert [tuple(g.shape) for g in gradients] == [(10, 16), (3, 48, 16), (3, 16, 24)]


def test_attention_counts_half_of_the_square() -> None:
    forward, both = attention.probes(SMALL, CPU)
    assert forward.work == 2 * 4 * 32**2 * 8 and both.work == 3.5 * forward.work
    assert forward.shape["bytes"] == 4 * 32 * 8 * (4 + 2 + 2 + 4)
    assert both.shape["bytes"] == 3 * forward.shape["bytes"]
    out = forward.make()()
    assert isinstance(out, torch.Tensor) and out.shape == (1, 4, 32, 8)
    gradients = both.make()()
    assert isinstance(gradients, tuple)
    assert [g.shape[1] for g in gradients] == [4, 2, 2]


def test_attention_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last key is seen by the last query alone."""
    drawn: list[torch.Tensor] = []
    real = torch.randn

    def randn(*args: object, **named: object) -> torch.Tensor:
        drawn.append(real(*args, **named))  # type: ignore[call-overload]
        return drawn[-1]

    monkeypatch.setattr(torch, "randn", randn)
    call = next(attention.probes(SMALL, CPU)).make()
    before = call()
    drawn[1][:, :, -1] += 1
    after = call()
    assert isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)
    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    assert not torch.equal(before, after)


def test_a_cpu_has_no_host_copies() -> None:
    assert not list(copies.probes(SMALL, CPU))
    found = list(copies.probes(SMALL, torch.device("cuda")))
    kinds = ["h2d pinned", "h2d pageable", "d2h pinned", "d2h pageable"]
    assert [c.kind for c in found] == [kind for kind in kinds for _ in range(2)]
    assert all(c.work == c.shape["bytes"] for c in found)


@given(operand=st.integers(1, 2**34))
def test_operands_leave_the_cache_before_their_turn(operand: int) -> None:
    sets = probe.rotations(operand, CPU)
    assert 1 <= sets <= 64
    assert sets == 1 or sets * operand <= probe.ROTATION_BYTES
    others = (sets - 1) * operand
    full = sets == 64 or (sets + 1) * operand > probe.ROTATION_BYTES
    assert full or others >= 2 * cache_bytes(CPU)


def test_rotation_takes_each_in_turn() -> None:
    seen: list[int] = []
    call = probe.rotate([lambda i=i: seen.append(i) for i in range(3)])  # type: ignore[misc]
    for _ in range(5):
        call()
    assert seen == [0, 1, 2, 0, 1]


@given(low=st.integers(1, 2**20), more=st.integers(0, 2**24), factor=st.integers(2, 9))
def test_sizes_climb_by_the_factor_up_to_the_limit(low: int, more: int, factor: int) -> None:
    config = HardwareConfig(min_bytes=low, max_bytes=low + more, factor=factor)
    sizes = config.sizes(CPU)
    assert sizes[0] == low and sizes[-1] <= low + more < sizes[-1] * factor
    assert all(b == a * factor for a, b in pairwise(sizes))


@pytest.mark.parametrize(
    "fields, problem",
    [
        ({"heads": 6, "kv_heads": 4}, "kv_heads is 4, which does not divide heads 6"),
        ({"min_bytes": "1MiB", "max_bytes": "1KiB"}, "max_bytes is 1024, below min_bytes 1048576"),
        ({"min_bytes": "much"}, "'much' is no size"),
        ({"expert_shapes": [[4, 12, 16, 2]]}, "multiples of 8"),
        ({"benches": ["disk"]}, "'disk': give some of memory, gemm, experts, attention, copy"),
        ({"nope": 1}, "Extra inputs are not permitted"),
    ],
)
def test_mistakes_are_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError) as raised:
        HardwareConfig.model_validate(fields)
    assert problem in str(raised.value)


def test_memory_goes_past_the_last_cache_of_every_rank() -> None:
    for least, largest in ((0, 2**28), (2**28, 2**28), (2**28 + 1, 2**30), (2**31, 2**32)):
        config = HardwareConfig(least_set=least or None)
        assert config.sizes(CPU)[-1] == largest
    assert HardwareConfig(least_set=2**31, max_bytes=2**20).sizes(CPU)[-1] == 2**20
    assert HardwareConfig(least_set=2**31).sizes(torch.device("cuda"), host=True)[-1] == 2**30


def test_the_last_level_of_every_die_counts_once(tmp_path: Path) -> None:
    """Four cores on two dies, each with an L2 of its own, a shared L3 and an instruction cache."""
    for core in range(4):
        shared = "0-1" if core < 2 else "2-3"
        for index, (level, kind, text, cores) in enumerate(
            [
                (1, "Instruction", "32K", str(core)),
                (2, "Unified", "1M", str(core)),
                (3, "Unified", "16384K", shared),
            ]
        ):
            folder = tmp_path / f"cpu{core}/cache/index{index}"
            folder.mkdir(parents=True)
            for name, value in (("level", level), ("type", kind), ("size", text)):
                (folder / name).write_text(f"{value}\n")
            (folder / "shared_cpu_list").write_text(f"{cores}\n")
    assert host_cache_bytes([0, 1, 2, 3], tmp_path) == 2 * 2**24
    assert host_cache_bytes([0, 1], tmp_path) == 2**24
    assert host_cache_bytes([7], tmp_path) == 0
    for core in range(4):
        (tmp_path / f"cpu{core}/cache/index2/size").unlink()
    assert host_cache_bytes([0, 3], tmp_path) == 2 * 2**20


def test_another_package_adds_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point: measured, summarised and drawn with ours."""
    curve = replace(memory.KIND.curve, name="disk", title="disk reads", axis="power")
    kind = probe.ProbeKind(
        lambda config, device: (
            replace(p, bench="disk", kind="cold") for p in memory.probes(config, device)
        ),
        ("moved",),
        probe.best_rates,
        curve,
    )
    point = SimpleNamespace(name="disk", load=lambda: kind)
    monkeypatch.setattr(PROBES, "_added", {"disk": point})
    config = SMALL.model_copy(update={"benches": ("disk",), "kinds": ("copy",), "budget_s": 1e-3})
    found: list[Hardware] = []

    def emit(event: str, **fields: Any) -> None:
        if event == "measurement":
            found.append(Hardware(**fields["value"]))

    run(config, CPU, emit)
    assert [(h.bench, h.kind, h.shape["moved"]) for h in found] == [
        ("disk", "cold", 2048),
        ("disk", "cold", 8192),
    ]
    assert summarise(found)["ranks"][0]["disk"] == {"cold": max(h.rate for h in found)}
    report = replace(bench_reports.hardware(), hardware=found)
    assert {"disk"} < set(plots.everything()) and [*plots.svgs(report)] == ["disk"]
