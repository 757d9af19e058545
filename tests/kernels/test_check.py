"""The gate: a good kernel passes on every target, and one that breaks a rule fails by that rule."""

# Triton's kernels take no Python types.
# mypy: disable-error-code="no-untyped-def"

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import triton
import triton.language as tl
from typer.testing import CliRunner

from moelstrom import UserError
from moelstrom.kernels import check as gate
from moelstrom.kernels import registry
from moelstrom.kernels.compile import Facts, compile_variant, facts
from moelstrom.kernels.spec import Variant
from moelstrom.kernels.targets import TARGETS
from moelstrom.kernels.tuning import matmul_tile, split
from moelstrom.launch.commands.kernels import app

AMD = ("gfx90a", "gfx942", "gfx950")


@triton.jit
def _gemm(
    a, b, c, rows, columns, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, ACCUMULATORS: tl.constexpr,
):  # fmt: skip
    """c [rows, columns] = a [rows, depth] b^T; a second accumulator takes b's next rows."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_tile = a + (m % rows)[:, None] * depth + k[None, :]
    b_tile = b + (n % columns)[:, None] * depth + k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        x = tl.load(a_tile + start)
        total = tl.dot(x, tl.load(b_tile + start).T, total)
        if ACCUMULATORS == 2:
            second = tl.dot(x, tl.load(b_tile + columns * depth + start).T, second)
    if ACCUMULATORS == 2:
        total *= second
    at = c + m[:, None] * columns + n[None, :]
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    tl.store(at, total.to(c.dtype.element_ty), mask=inside)


@triton.jit
def _descriptor_gemm(
    a, b, c, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        total = tl.dot(a.load([row, start]), b.load([column, start]).T, total)
    c.store([row, column], total.to(c.dtype))


@triton.jit
def _outer_products(a, b, c, rows, columns, depth, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """The same without a matrix instruction: products summed by vector units."""
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
    for start in range(0, depth, BLOCK_K):
        x = tl.load(a + m[:, None] * depth + k[None, :] + start).to(tl.float32)
        y = tl.load(b + m[:, None] * depth + k[None, :] + start).to(tl.float32)
        total += tl.sum(x[:, None, :] * y[None, :, :], 2)
    tl.store(c + m[:, None] * columns + m[None, :], total.to(c.dtype.element_ty))


@triton.jit
def _one_dot(a, b, c, rows, columns, depth, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """A matrix instruction before the loop, none inside it."""
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    at = m[:, None] * depth + k[None, :]
    total = tl.dot(tl.load(a + at), tl.load(b + at).T)
    for start in range(BLOCK_K, depth, BLOCK_K):
        total += tl.sum(tl.load(a + at + start).to(tl.float32), 1)[:, None]
    tl.store(c + m[:, None] * columns + m[None, :], total.to(c.dtype.element_ty))


@triton.jit
def _prints(a, c, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(a + at)
    tl.device_print("x", x)
    tl.store(c + at, x)


_ARGUMENTS = ("a", "b", "c", "rows", "columns", "depth")


def _variant(
    kernel: Any, constants: Mapping[str, int], dtype: str = "bf16", **options: int
) -> Variant:
    signature = {n: f"*{dtype}" if n in "ab" else "i32" for n in _ARGUMENTS} | {"c": "*bf16"}
    return Variant("gemm", kernel, signature, constants, _ARGUMENTS, options, matrix=True)


def _matmul(
    m: int, n: int, k: int, accumulators: int = 1, dtype: str = "bf16", **options: int
) -> Variant:
    constants = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "ACCUMULATORS": accumulators}
    return _variant(_gemm, constants, dtype, **options)


def _problems(variant: Variant, target: str) -> str:
    return "; ".join(gate.check(variant, TARGETS[target]).problems)


@pytest.mark.parametrize("accumulators", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_a_tile_by_budget_passes(target: str, accumulators: int) -> None:
    constants, options = split(matmul_tile(TARGETS[target], accumulators))
    variant = _variant(_gemm, constants | {"ACCUMULATORS": accumulators}, **options)
    for form in (variant, replace(variant, large=True)):
        verdict = gate.check(form, TARGETS[target])
        assert verdict.problems == ()
        assert verdict.found is not None and verdict.found.occupancy >= 1
        assert verdict.found.load_bytes == 16


@pytest.mark.parametrize("target", ["sm90", "sm100"])
def test_a_descriptor_kernel_passes(target: str) -> None:
    types = {"a": "bf16[128,64]", "b": "bf16[256,64]", "c": "bf16[128,256]"}
    signature = {n: f"tensordesc<{t}>" for n, t in types.items()} | {"depth": "i32"}
    constants = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}
    options = {"num_warps": 8, "num_stages": 3}
    variant = Variant(
        "gemm", _descriptor_gemm, signature, constants, ("depth",), options, matrix=True
    )
    verdict = gate.check(variant, TARGETS[target])
    assert verdict.problems == ()
    assert verdict.found is not None
    assert {load.op.split(".")[0] for load in verdict.found.loads} == {"UTMALDG"}


INSTRUCTIONS = {"sm80": "HMMA", "sm90": "HGMMA", "sm100": "UTCHMMA"} | dict.fromkeys(AMD, "v_mfma")


@pytest.mark.parametrize(("target", "instruction"), INSTRUCTIONS.items())
def test_instruction_is_named(target: str, instruction: str) -> None:
    found = gate.check(_matmul(128, 128, 64, num_warps=8, num_stages=2), TARGETS[target]).found
    assert found is not None and found.instructions[0].startswith(instruction)


@pytest.mark.parametrize("target", AMD)
def test_amd_occupancy_is_the_compilers(target: str) -> None:
    compiled = compile_variant(_matmul(256, 256, 32, num_warps=8, num_stages=2), TARGETS[target])
    found = facts(compiled, TARGETS[target])
    waves = re.search(r"; Occupancy: (\d+)", compiled.asm["amdgcn"])
    total = re.search(r"; TotalNumVgprs: (\d+)", compiled.asm["amdgcn"])
    assert waves and total and found.registers == int(total[1])
    # It counts waves of a SIMD by registers alone: so do programs of four waves.
    assert TARGETS[target].occupancy(256, found.registers, 0) == int(waves[1])


@pytest.mark.parametrize(("large", "op"), [(False, "buffer_load"), (True, "global_load")])
def test_tensors_past_2_gib_are_addressed_otherwise(large: bool, op: str) -> None:
    variant = replace(_matmul(128, 128, 64, num_warps=8, num_stages=2), large=large)
    found = facts(compile_variant(variant, TARGETS["gfx942"]), TARGETS["gfx942"])
    assert {load.op.rsplit("_", 1)[0] for load in found.loads} == {op}


@pytest.mark.parametrize(
    ("target", "stages"), [("gfx942", 3), ("gfx950", 4), ("sm80", 4), ("sm90", 4), ("sm100", 4)]
)
def test_too_much_shared_memory_fails(target: str, stages: int) -> None:
    problems = _problems(_matmul(256, 256, 64, num_warps=8, num_stages=stages), target)
    assert "bytes of shared memory" in problems


def test_too_much_tensor_memory_fails() -> None:
    variant = _matmul(256, 256, 64, accumulators=2, num_warps=8, num_stages=1)
    assert "columns of tensor memory" in _problems(variant, "sm100")


@pytest.mark.parametrize(("target", "columns"), [("gfx942", 128), ("sm80", 32)])
def test_spills_fail(target: str, columns: int) -> None:
    # As many accumulators as a thread of the target has registers.
    problems = _problems(_matmul(256, columns, 16, num_warps=1, num_stages=1), target)
    assert "register spills" in problems and "bytes of scratch" in problems


def test_scalar_spills_alone_fail() -> None:
    """AMD's scalar registers go to lanes of a vector register: no scratch tells of them."""
    variant, target = _matmul(64, 64, 32, num_warps=4, num_stages=1), TARGETS["gfx942"]
    budget: dict[str, Any] = {"shared": 0, "threads": 256, "registers": 64, "agprs": 0}
    budget |= {"occupancy": 2}
    code: dict[str, Any] = {"instructions": (), "matrix_in_loop": True, "loads": (), "fp8": ()}
    good = Facts(**budget, **code, spills=0, scalar_spills=0, scratch=0, tensor_columns=0)
    for vectors, scalars, said in (
        (0, 0, []),
        (0, 3, ["3 scalar register spills"]),
        (2, 0, ["2 register spills"]),
        (2, 3, ["2 register spills, 3 scalar register spills"]),
    ):
        found = replace(good, spills=vectors, scalar_spills=scalars)
        problems = (rule(found, variant, target) for rule in gate.RULES)
        assert [problem for problem in problems if problem] == said


def test_a_stack_frame_fails() -> None:
    # What a forgotten print leaves: its arguments, in each thread's own memory.
    variant = Variant("prints", _prints, {"a": "*fp32", "c": "*fp32"}, {"BLOCK": 128}, ("a", "c"))
    assert "bytes of scratch" in _problems(variant, "sm90")


@pytest.mark.parametrize("target", AMD)
def test_32_warps_of_64_lanes_fail(target: str) -> None:
    assert "2,048 threads" in _problems(_matmul(128, 128, 64, num_warps=32, num_stages=1), target)


@pytest.mark.parametrize("kernel", [_outer_products, _one_dot])
@pytest.mark.parametrize("target", ["gfx942", "sm90"])
def test_no_matrix_instruction_in_a_loop_fails(target: str, kernel: Any) -> None:
    variant = _variant(kernel, {"BLOCK_M": 32, "BLOCK_K": 16}, num_warps=4, num_stages=1)
    assert "no matrix instruction" in _problems(variant, target)
    assert "no matrix instruction" not in _problems(replace(variant, matrix=False), target)


@pytest.mark.parametrize("target", TARGETS)
def test_narrow_loads_without_divisibility_fail(target: str) -> None:
    variant = replace(_matmul(128, 128, 64, num_warps=8, num_stages=2), divisible=())
    assert "narrow loads in the main loop" in _problems(variant, target)
    assert "narrow loads" not in _problems(replace(variant, narrow_loads=1000), target)


@pytest.mark.filterwarnings("ignore:fp8e4b8 is AMD gfx942 specific")
@pytest.mark.parametrize(
    ("target", "dtype"),
    [("gfx90a", "fp8e4nv"), ("gfx942", "fp8e4nv"), ("gfx942", "fp8e5"), ("gfx950", "fp8e4b8")],
)
def test_another_targets_fp8_fails(target: str, dtype: str) -> None:
    variant = _matmul(128, 128, 64, dtype=dtype, num_warps=8, num_stages=2)
    assert f"{dtype}: {target}'s matrix units" in _problems(variant, target)


@pytest.mark.parametrize("target", ["gfx942", "gfx950", "sm90", "sm100"])
def test_the_targets_own_fp8_passes(target: str) -> None:
    dtype = TARGETS[target].fp8[0]
    variant = _matmul(128, 128, 128, dtype=dtype, num_warps=8, num_stages=2)
    assert _problems(variant, target) == ""


def test_a_compile_error_is_a_failure() -> None:
    variant = _matmul(128, 128, 64, dtype="fp8e4nv", num_warps=8, num_stages=2)
    verdict = gate.check(variant, TARGETS["sm80"])
    assert verdict.found is None and "fp8e4nv" in verdict.problems[0]


_OPERATOR = """
    import os
    import triton
    import triton.language as tl
    from moelstrom.kernels.spec import Variant

    @triton.jit
    def _copy(a, c, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(c + at, tl.load(a + at))

    class _Crash:
        @property
        def arg_names(self):
            os._exit(1)

    def variants(target):
        signature = {"a": "*fp32", "c": "*fp32"}
        for name, divisible in FORMS:
            kernel = _Crash() if name == "crash" else _copy
            yield Variant(name, kernel, signature, {"BLOCK": 1024}, divisible)
"""


def _operator(folder: Path, monkeypatch: pytest.MonkeyPatch, **forms: tuple[str, ...]) -> None:
    """Register one operator of these forms: name and the arguments that are divisible."""
    name = "gate_" + "_".join(forms)
    text = f"FORMS = {list(forms.items())}\n" + textwrap.dedent(_OPERATOR)
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(registry, "OPERATORS", (name,))


def _invoke(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    path = folder / "facts.json"
    result = CliRunner().invoke(app, ["check", *arguments, "--out", str(path), "--workers", "1"])
    return result.exit_code, result.output, json.loads(path.read_text())


def test_command_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _operator(tmp_path, monkeypatch, good=("a", "c"))
    code, output, facts = _invoke(tmp_path)
    assert code == 0 and "9 compiled forms, 0 failed" in output
    assert [v["target"] for v in facts["variants"]].count("gfx942") == 2
    assert all(v["found"]["loads"][0]["bytes"] == 16 for v in facts["variants"])


def test_command_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _operator(tmp_path, monkeypatch, good=("a", "c"), bad=())
    code, output, facts = _invoke(tmp_path, "--target", "sm90")
    assert code == 1 and "2 compiled forms, 1 failed" in output
    assert facts["failed"] == 1
    command = ["check", "--target", "sm90", "--json", "--workers", "1"]
    assert json.loads(CliRunner().invoke(app, command).stdout) == facts
    assert [bool(v["problems"]) for v in facts["variants"]] == [False, True]


@pytest.mark.slow
def test_a_compiler_crash_fails_its_form_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _operator(tmp_path, monkeypatch, crash=(), good=("a", "c"))
    code, _, facts = _invoke(tmp_path, "--target", "sm80")
    assert code == 1
    assert [v["problems"] for v in facts["variants"]] == [["the compiler crashed"], []]


@pytest.mark.parametrize("option", ["--target", "--operator"])
def test_unknown_names_are_the_users_mistake(option: str) -> None:
    result = CliRunner().invoke(app, ["check", option, "gfx9"])
    assert isinstance(result.exception, UserError) and "one of" in str(result.exception)
