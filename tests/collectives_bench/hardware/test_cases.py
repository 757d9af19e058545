"""Every case does what its name says, and counts what it does."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from moelstrom.collectives_bench.hardware import attention, case, copies, gemm, memory
from moelstrom.collectives_bench.hardware.config import HardwareConfig

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
    found = [c for c in memory.cases(SMALL, CPU) if c.kind == kind]
    assert [c.shape["bytes"] for c in found] == [1024, 4096]
    out = found[0].make()()
    assert isinstance(out, torch.Tensor) and (out == value).all()
    buffers = {"copy": 2, "scale": 2, "triad": 3, "read": 1, "write": 1}[kind]
    assert found[0].work == found[0].bytes == found[0].shape["moved"] == buffers * 1024


def counted(call: case.Call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_gemm_flops_are_those_that_run() -> None:
    sweep, model = gemm.cases(SMALL, CPU)
    assert (sweep.kind, sweep.shape) == ("sweep", {"M": 8, "N": 16, "K": 24})
    assert (model.kind, model.shape) == ("qkv", {"M": 4, "N": 8, "K": 16})
    for found in (sweep, model):
        assert counted(found.make()) == found.work
        out = found.make()()
        assert isinstance(out, torch.Tensor)
        assert list(out.shape) == [found.shape["M"], found.shape["N"]]


def test_expert_flops_are_those_of_three_products_a_row() -> None:
    forward, both = gemm.expert_cases(SMALL, CPU)
    assert forward.work == 2 * 10 * 3 * (16 * 24) and both.work == 3 * forward.work
    out = forward.make()()
    assert isinstance(out, torch.Tensor) and out.shape == (10, 16) and not out.requires_grad
    gradients = both.make()()
    assert isinstance(gradients, tuple)
    assert [tuple(g.shape) for g in gradients] == [(10, 16), (3, 48, 16), (3, 16, 24)]


def test_attention_counts_half_of_the_square() -> None:
    forward, both = attention.cases(SMALL, CPU)
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
    call = next(attention.cases(SMALL, CPU)).make()
    before = call()
    drawn[1][:, :, -1] += 1
    after = call()
    assert isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)
    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    assert not torch.equal(before, after)


def test_a_cpu_has_no_host_copies() -> None:
    assert not list(copies.cases(SMALL, CPU))
    found = list(copies.cases(SMALL, torch.device("cuda")))
    kinds = ["h2d pinned", "h2d pageable", "d2h pinned", "d2h pageable"]
    assert [c.kind for c in found] == [kind for kind in kinds for _ in range(2)]
    assert all(c.work == c.shape["bytes"] for c in found)


@given(operand=st.integers(1, 2**34))
def test_operands_leave_the_cache_before_their_turn(operand: int) -> None:
    sets = case.rotations(operand, CPU)
    assert 1 <= sets <= 64
    assert sets == 1 or sets * operand <= case.ROTATION_BYTES
    others = (sets - 1) * operand
    full = sets == 64 or (sets + 1) * operand > case.ROTATION_BYTES
    assert full or others >= 2 * case.cache_bytes(CPU)


def test_rotation_takes_each_in_turn() -> None:
    seen: list[int] = []
    call = case.rotate([lambda i=i: seen.append(i) for i in range(3)])  # type: ignore[misc]
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
        ({"benches": ["disk"]}, "'memory', 'gemm', 'experts', 'attention' or 'copy'"),
        ({"nope": 1}, "Extra inputs are not permitted"),
    ],
)
def test_mistakes_are_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError) as raised:
        HardwareConfig.model_validate(fields)
    assert problem in str(raised.value)
