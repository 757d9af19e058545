"""Whole sweeps on real Gloo ranks: results, agreement, and what is found when one errs."""

import json
import os
import re
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytest import approx
from ranks import run_ranks

from moelstrom import UserError
from moelstrom.collectives_bench import plan as plan_module
from moelstrom.collectives_bench import sweep as sweep_module
from moelstrom.collectives_bench import worker
from moelstrom.collectives_bench.config import CollectivesConfig
from moelstrom.collectives_bench.operators import (
    OPERATORS,
    all_reduce,
    all_to_all,
    broadcast,
    scatter,
)
from moelstrom.collectives_bench.overhead import compare
from moelstrom.collectives_bench.report.collect import Collector
from moelstrom.collectives_bench.schema import BenchReport, read
from moelstrom.collectives_bench.suspects import find

CPU = torch.device("cpu")
Events = list[tuple[str, dict[str, Any]]]


def events(fields: dict[str, Any]) -> Events:
    """What one rank emits."""
    found: Events = []
    config = CollectivesConfig.model_validate(fields)
    worker.run(config, CPU, lambda kind, **values: found.append((kind, values)))
    return found


def failure(fields: dict[str, Any]) -> str:
    try:
        events(fields)
    except (RuntimeError, UserError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def report(found: Events, path: Path) -> BenchReport:
    """The report as the launcher makes and reads it."""
    empty = BenchReport("collectives", "now", "test", "", 0, [], {}, {})
    collector = Collector(empty, path)
    for kind, values in found:
        collector({"kind": kind, **json.loads(json.dumps(values))})
    collector.end("complete")
    return read(path)


def test_every_operation_and_dtype_is_right(tmp_path: Path) -> None:
    fields = {
        "dtypes": ["fp32", "bf16", "fp16", "int8", "uint8", "int64"],
        **{"min_bytes": 1024, "max_bytes": 300000, "factor": 256, "iterations": 3},
    }
    found = report(run_ranks(3, events, fields)[0], tmp_path / "report.json")
    assert found.world_size == 3 and found.backend == "gloo" and not found.skipped
    assert {c.op for c in found.collectives} == set(OPERATORS)
    assert len(found.collectives) == 14 * 2 * 6 + 1
    for c in found.collectives:
        assert c.ranks == [0, 1, 2] and [t.rank for t in c.per_rank] == [0, 1, 2]
        assert c.iterations == 3 and 0 < c.p50_s <= c.p95_s <= c.max_s
        assert c.wrong == (None if c.op == "barrier" else 0), c
        assert c.algbw == approx(c.bytes / c.mean_s)
        assert c.busbw == approx(c.algbw * OPERATORS[c.op].factor(3))
        assert c.mean_s == approx(sum(t.mean_s for t in c.per_rank) / 3)


def test_one_process(tmp_path: Path) -> None:
    fields = {"max_bytes": 1024, "groups": ["world", "pairs"], "loads": ["zipf:1"]}
    found = report(run_ranks(1, events, fields)[0], tmp_path / "report.json")
    assert {c.op for c in found.collectives} == {*OPERATORS} - {"send_recv"}
    assert {s.what for s in found.skipped} == {"send_recv world", "pairs"}
    assert all(c.busbw == 0 for c in found.collectives if c.op == "all_reduce")


def test_groups_loads_and_what_each_rank_hears(tmp_path: Path) -> None:
    fields = {
        "ops": ["all_reduce", "all_to_all_v", "send_recv", "barrier"],
        "groups": ["counts", "pairs", "0,3;2,1"],
        "loads": ["zipf:1.5", "balanced"],
        **{"min_bytes": 2**16, "max_bytes": 2**16, "iterations": 5},
    }
    outcomes = run_ranks(4, events, fields)
    found = report(outcomes[0], tmp_path / "report.json")
    keys = {(c.group, tuple(c.ranks), c.at_once) for c in found.collectives}
    assert keys == {
        *(("first 2", (0, 1), 1), ("first 3", (0, 1, 2), 1), ("first 4", (0, 1, 2, 3), 1)),
        *(("pairs", (a, b), 2) for a in range(4) for b in range(a + 1, 4)),
        *(("0,3;2,1", (0, 3), n) for n in (1, 2)),
        ("0,3;2,1", (1, 2), 2),
    }
    assert all(c.wrong == 0 for c in found.collectives if c.bytes)
    sizes = {c.load: c.bytes for c in found.collectives if c.op == "all_to_all_v"}
    assert sizes["balanced"] == 2**16 < sizes["zipf:1.5"]
    steps = [[v for kind, v in rank if kind == "step"] for rank in outcomes]
    assert steps[0] == steps[3] and [v["step"] for v in steps[0]] == [*range(steps[0][0]["total"])]
    assert {kind for rank in outcomes[1:] for kind, _ in rank} == {"step"}


def _swap(out: torch.Tensor, sent: torch.Tensor, *splits: Any, **group: Any) -> None:
    """An all-to-all that delivers every part to the place of the next one."""
    half = torch.empty_like(out)
    dist.all_to_all_single(half, sent, *splits, **group)
    out.copy_(half.roll(len(out) // 2))


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A call that delivers nothing."""


def _own(x: torch.Tensor, group: Any = None) -> None:
    """A sum that takes this rank twice and leaves the last one out."""
    own = x.clone()
    if dist.get_rank() == 1:
        x.zero_()
    dist.all_reduce(x, group=group)
    x += own if dist.get_rank() == 0 else torch.zeros_like(x)


class _Broken:
    """torch.distributed, with some calls that err."""

    def __init__(self, **calls: Any) -> None:
        self.__dict__.update(calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)


def broken(fields: dict[str, Any]) -> Events:
    calls = _Broken(all_to_all_single=_swap, broadcast=_nothing, all_reduce=_own, scatter=_nothing)
    for module in (all_to_all, broadcast, all_reduce, scatter):
        module.dist = calls  # type: ignore[attr-defined]
    return events(fields)


def test_a_wrong_result_is_counted(tmp_path: Path) -> None:
    fields = {
        "ops": ["all_to_all", "broadcast", "all_reduce", "scatter", "all_gather"],
        **{"max_bytes": 1024, "in_place": "both"},
    }
    found = report(run_ranks(2, broken, fields)[0], tmp_path / "report.json")
    wrong = {
        c.op: c.wrong or 0 for c in found.collectives if not (c.op == "scatter" and c.in_place)
    }
    # Of 2 x 256 elements; what a root already has is right.
    assert wrong["all_gather"] == 0 and wrong["broadcast"] == 256 and wrong["scatter"] == 256
    assert wrong["all_to_all"] > 400 and wrong["all_reduce"] > 400


def test_a_late_rank_is_found(tmp_path: Path) -> None:
    fields = {
        "ops": ["all_reduce", "all_gather"],
        **{"max_bytes": 4096, "inject": "1:all_reduce:0.02", "iterations": 8},
    }
    found = report(run_ranks(3, events, fields)[0], tmp_path / "report.json")
    late = [s for s in find(found) if s.measure == "arrival"]
    assert [s.ranks for s in late] == [[1]] and "all_reduce" in late[0].text
    first = next(c for c in found.collectives if c.op == "all_reduce")
    times = {t.rank: t.p50_s for t in first.per_rank}
    assert times[1] < min(times[0], times[2])


def little_memory(fields: dict[str, Any]) -> Events:
    free = {0: 2**40, 1: 3 * 2**16}[dist.get_rank()]
    sweep_module.free_bytes = lambda device: free
    return events(fields)


def no_buffers(fields: dict[str, Any]) -> Events:
    """Rank 1 fails to allocate the larger size."""
    op = OPERATORS["broadcast"]

    def build(member: Any, count: int) -> Any:
        if member.index == 1 and count > 1024:
            raise torch.OutOfMemoryError("out of memory")
        return op.build(member, count)

    plan_module.OPERATORS = {  # type: ignore[assignment]
        "broadcast": replace(op, build=build)
    }
    return events(fields)


@pytest.mark.parametrize(
    ("function", "reason"),
    [(little_memory, "needs .* on a rank, and .* may be used"), (no_buffers, "out of memory")],
)
def test_what_does_not_fit_on_one_rank_is_skipped_by_all(
    function: Any, reason: str, tmp_path: Path
) -> None:
    fields = {"ops": ["broadcast"], "max_bytes": 2**17, "min_bytes": 2048, "factor": 64}
    found = report(run_ranks(2, function, fields)[0], tmp_path / "report.json")
    assert [c.bytes for c in found.collectives] == [2048]
    (skip,) = found.skipped
    assert (skip.what, skip.bytes) == ("broadcast fp32 128 KiB world in place", 2**17)
    assert re.search(reason, skip.reason)


def test_slow_points_get_fewer_iterations_and_no_check_where_that_is_off() -> None:
    fields = {"ops": ["all_to_all"], "max_bytes": 1024, "iterations": 50, "budget_s": 1e-6}
    (outcome,) = run_ranks(1, events, {**fields, "check": False})
    (found,) = [values["value"] for kind, values in outcome if kind == "measurement"]
    assert found["iterations"] == 5 and found["wrong"] is None


def failures(each: list[dict[str, Any]]) -> list[str]:
    return [failure(fields) for fields in each]


def test_mistakes_that_only_the_ranks_know_of_reach_all(tmp_path: Path) -> None:
    each = [{"groups": ["0,2"]}, {"loads": [f"log:{tmp_path}"]}]
    for group, load in run_ranks(2, failures, each):
        assert group == (
            "UserError: groups: '0,2' names rank 2, but the ranks are 0 to 1; name those, or start "
            "more"
        )
        assert load.startswith("UserError: loads: log:")


def stuck(fields: dict[str, Any], where: str) -> str:
    """Rank 1 stays away from the second point, or hangs within the first."""
    config = CollectivesConfig.model_validate(fields)
    rank, limit = int(os.environ["RANK"]), timedelta(seconds=config.timeout_s)
    # The launcher gives the default group the benchmark's own time-out.
    dist.destroy_process_group()
    store = dist.FileStore(f"{where}/store", 3)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=limit)

    def emit(kind: str, **values: Any) -> None:
        if kind == "step" and values["step"] == 1 and rank == 1:
            time.sleep(8)

    try:
        worker.run(config, CPU, emit)
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inject", "words"),
    [
        (None, "rank 1 did not reach all_gather fp32 1 KiB world within 2 s"),
        ("1:all_reduce:8", "rank 1 did not reach the end of all_reduce fp32 1 KiB world"),
    ],
)
def test_a_rank_that_hangs_is_named(inject: str | None, words: str, tmp_path: Path) -> None:
    fields = {"ops": ["all_reduce", "all_gather"], "max_bytes": 1024, "in_place": "both"}
    fields |= {"timeout_s": 2, "budget_s": 1, "inject": inject}
    messages = run_ranks(3, stuck, fields, str(tmp_path))
    assert messages[0].startswith(words)


def overhead() -> Any:
    return compare(CPU, sizes=(2**20,), rounds=3, iterations=3)


def test_overhead_is_measured_in_pairs() -> None:
    found, other = run_ranks(2, overhead)
    assert other == [] and [row["op"] for row in found] == ["all_reduce", "all_to_all"]
    assert all(row["bare_s"] > 0 and row["reported"] <= row["wall"] for row in found)
