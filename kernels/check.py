"""The portability gate: what a compiled kernel must not do on a target."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context

from . import registry
from .compile import Facts, compile_variant, facts
from .spec import Variant
from .targets import TARGETS, Target

Rule = Callable[[Facts, Variant, Target], str | None]
MIN_LOAD_BYTES = 8


def shared_memory(found: Facts, variant: Variant, target: Target) -> str | None:
    if found.shared <= target.shared_bytes:
        return None
    return f"{found.shared:,} bytes of shared memory; {target.name} has {target.shared_bytes:,}"


def tensor_memory(found: Facts, variant: Variant, target: Target) -> str | None:
    if found.tensor_columns <= target.tensor_columns:
        return None
    return f"{found.tensor_columns} columns of tensor memory; there are {target.tensor_columns}"


def spills(found: Facts, variant: Variant, target: Target) -> str | None:
    counts = {"register": found.spills, "scalar register": found.scalar_spills}
    return ", ".join(f"{n} {kind} spills" for kind, n in counts.items() if n) or None


def scratch(found: Facts, variant: Variant, target: Target) -> str | None:
    return f"{found.scratch} bytes of scratch per thread" if found.scratch else None


def threads(found: Facts, variant: Variant, target: Target) -> str | None:
    if found.threads <= target.max_threads:
        return None
    return f"{found.threads:,} threads; at most {target.max_threads:,} ({target.max_warps} warps)"


def matrix_instruction(found: Facts, variant: Variant, target: Target) -> str | None:
    if found.matrix_in_loop or not variant.matrix:
        return None
    return "no matrix instruction in a loop"


def load_width(found: Facts, variant: Variant, target: Target) -> str | None:
    narrow = [load for load in found.loads if load.bytes < MIN_LOAD_BYTES]
    if sum(load.count for load in narrow) <= variant.narrow_loads:
        return None
    listed = ", ".join(f"{load.count} {load.op} ({load.bytes} B)" for load in narrow)
    return f"narrow loads in the main loop: {listed}; allowed {variant.narrow_loads}"


def fp8_type(found: Facts, variant: Variant, target: Target) -> str | None:
    wrong = [name for name in found.fp8 if name not in target.fp8]
    if not wrong:
        return None
    known = " or ".join(target.fp8) or "no 8-bit float"
    return f"{', '.join(wrong)}: {target.name}'s matrix units take {known}"


RULES: tuple[Rule, ...] = (
    shared_memory,
    tensor_memory,
    spills,
    scratch,
    threads,
    matrix_instruction,
    load_width,
    fp8_type,
)


@dataclass(frozen=True)
class Verdict:
    """One variant on one target; `found` is None where it did not compile."""

    operator: str
    key: str
    config: str
    constants: dict[str, bool | int | float | str]
    target: str
    found: Facts | None
    problems: tuple[str, ...]


def check(variant: Variant, target: Target) -> Verdict:
    """Compile for `target` and hold the result against every rule."""
    try:
        found = facts(compile_variant(variant, target), target)
    # Whatever the compiler raises is this row's failure; the other rows still count.
    except Exception as error:
        return verdict(variant, target, None, (f"{type(error).__name__}: {_short(error)}",))
    problems = (rule(found, variant, target) for rule in RULES)
    return verdict(variant, target, found, tuple(p for p in problems if p))


def verdict(
    variant: Variant, target: Target, found: Facts | None, problems: tuple[str, ...]
) -> Verdict:
    config = f"{variant.config} >2GiB" if variant.large else variant.config
    plain = (bool, int, float, str)
    constants = {k: v if isinstance(v, plain) else str(v) for k, v in variant.constexprs.items()}
    return Verdict(variant.operator, variant.key, config, constants, target.name, found, problems)


def _short(error: Exception) -> str:
    # Triton's compilation errors keep the cause's words on the last line.
    return (str(error).strip().splitlines() or [""])[-1][:300]


@dataclass(frozen=True)
class CompileJob:
    """The variant at `index` of `forms(target, module)`: what a process is sent."""

    target: str
    module: str
    index: int


@cache
def forms(target: str, module: str) -> list[Variant]:
    """The operator's variants; on AMD each also for tensors past 2 GiB."""
    found = list(registry.variants(TARGETS[target], module))
    if TARGETS[target].backend == "cuda":
        return found
    return [form for v in found for form in (v, replace(v, large=True))]


def run_job(job: CompileJob) -> Verdict:
    return check(forms(job.target, job.module)[job.index], TARGETS[job.target])


def jobs(targets: list[str], modules: list[str]) -> list[CompileJob]:
    """Every form of these operators' modules on these targets."""
    return [
        CompileJob(target, module, index)
        for module in modules
        for target in targets
        for index in range(len(forms(target, module)))
    ]


def check_all(
    todo: list[CompileJob], workers: int | None = None
) -> Iterator[tuple[CompileJob, Verdict]]:
    """Run the jobs in `workers` processes (None: one a core), as they finish.

    A compiler that takes its process down costs the job its verdict, not the run: jobs lost with
    the pool run again, each in a process of its own.
    """
    lost: list[CompileJob] = []
    with _pool(workers or len(os.sched_getaffinity(0))) as pool:
        pending: dict[Future[Verdict], CompileJob] = {
            pool.submit(run_job, job): job for job in todo
        }
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                job = pending.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(job)
                else:
                    yield job, future.result()
    for job in lost:
        yield job, _alone(job)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: a parent with CUDA or threads would hand down what a child cannot use.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _alone(job: CompileJob) -> Verdict:
    variant, target = forms(job.target, job.module)[job.index], TARGETS[job.target]
    with _pool(1) as pool:
        try:
            return pool.submit(run_job, job).result()
        except BrokenProcessPool:
            return verdict(variant, target, None, ("the compiler crashed",))
