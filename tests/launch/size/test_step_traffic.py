"""The collectives that the predictor counts against those that the native engine calls."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from engine_runs import LENGTH, MODEL, SEQUENCES, Case, microbatches, start
from ranks import run_ranks

from moelstrom.collectives_bench.network import Network
from moelstrom.collectives_bench.predict import calls
from moelstrom.launch.size import network as size_network
from moelstrom.moe.config import EngineConfig, LayoutConfig
from moelstrom.moe.engines.native import bucket

WORLD, ROWS = 2, 2
Tally = dict[str, dict[str, float]]


@contextmanager
def recorded(tally: Tally) -> Iterator[None]:
    """Count calls and bytes (of the full buffer) of the collectives that a step makes."""

    def note(op: str, function: Callable, full: int) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            kind = "counts" if args[full].dtype == torch.int64 else op
            tally["calls"][kind] += 1
            tally["bytes"][kind] += args[full].nbytes
            return function(*args, **options)

        return call

    with (
        patch.object(bucket, "_reduce_scatter", note("reduce_scatter", bucket._reduce_scatter, 1)),
        patch.object(bucket, "_all_gather", note("all_gather", bucket._all_gather, 0)),
        patch.object(dist, "all_to_all_single", note("all_to_all", dist.all_to_all_single, 1)),
    ):
        yield


def _step(case: Case) -> Tally:
    engine = start(case)
    tally: Tally = {"calls": defaultdict(float), "bytes": defaultdict(float)}
    with recorded(tally):
        engine.step(microbatches(0, ROWS))
    return tally


def _predicted(case: Case) -> Tally:
    """What `launch` tells the predictor of the same step, as calls and bytes."""
    engine = EngineConfig(bucket_mb=1)
    with patch.object(size_network, "predict") as predict:
        size_network.Predicted(Network(()), WORLD, engine, "").predict(
            MODEL,
            LayoutConfig(dp=WORLD, ep=case.ep),
            tokens=ROWS * LENGTH,
            microbatches=SEQUENCES // WORLD // ROWS,
            recompute=case.recompute,
        )
    _, step, layout = predict.call_args.args
    tally: Tally = {"calls": defaultdict(float), "bytes": defaultdict(float)}
    for call in calls(step, layout):
        tally["calls"][call.op] += call.times
        tally["bytes"][call.op] += call.times * call.bytes
    return tally


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("ep", [1, 2])
def test_the_predictor_counts_what_the_engine_sends(ep: int, recompute: bool) -> None:
    case = Case("native", ep, zero=1, recompute=recompute)
    sent = run_ranks(WORLD, _step, case)
    predicted = _predicted(case)
    for op in ("reduce_scatter", "all_gather"):
        # Shards are padded by less than an element for each rank and bucket.
        assert sent[0]["bytes"][op] == pytest.approx(predicted["bytes"][op], rel=0.01)
    for kind in ("calls", "bytes"):
        assert sent[0][kind]["counts"] == predicted[kind]["all_to_all"]
    assert sent[0]["calls"]["all_to_all"] == predicted["calls"]["all_to_all_v"]
    # A rank sends what its router chose and gets back what the others' chose: even in the sum.
    rows = sum(tally["bytes"]["all_to_all"] for tally in sent) / WORLD
    assert rows == predicted["bytes"]["all_to_all_v"]
