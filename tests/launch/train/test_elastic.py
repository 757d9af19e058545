"""The same run on other numbers of ranks: which ones, in which layout, and with which samples."""

from pathlib import Path

import pytest
from launch_runs import losses, make_dataset, run_worker, write_config

from moelstrom import UserError
from moelstrom.launch.config import RunConfig, load
from moelstrom.launch.train.elastic import allowed_sizes, layout_for
from moelstrom.launch.train.log import select
from moelstrom.launch.train.random_state import random_seed
from moelstrom.launch.train.records import RunRecord, StepRecord


def elastic(*overrides: str) -> RunConfig:
    """The tiny recipe: 8 experts, micro-batches of 1, on 8 ranks of which all but 2 may be lost."""
    sizes = ["data.micro_batch_size=1", "data.global_batch_size=24", "layout.dp=8", "layout.ep=4"]
    return load("tiny", [*sizes, "cluster.elastic=true", "cluster.min_workers=2", *overrides])


@pytest.mark.parametrize(("world", "ep"), [(8, 4), (6, 2), (4, 4), (3, 1), (2, 2)])
def test_the_layout_of_a_size(world: int, ep: int) -> None:
    resized = layout_for(elastic(), world)
    assert (resized.layout.dp, resized.layout.ep) == (world, ep)
    assert resized.data.global_batch_size == 24
    assert resized.model_copy(update={"layout": elastic().layout}) == elastic()


def test_sizes_share_the_global_batch_evenly() -> None:
    assert allowed_sizes(elastic()) == (8, 6, 4, 3, 2)
    assert allowed_sizes(elastic("cluster.elastic=false")) == (8,)
    for world in (5, 7):
        with pytest.raises(UserError, match=rf"{world} ranks: data\.global_batch_size: 24 is not"):
            layout_for(elastic(), world)
    with pytest.raises(UserError, match=r"cluster\.min_workers: 2, but 1 ranks were started"):
        layout_for(elastic(), 1)
    # ZeRO 3 of DeepSpeed refuses expert parallelism, at any size.
    zero = ["engine.name=deepspeed", "layout.zero=3", "layout.ep=1"]
    assert allowed_sizes(elastic(*zero)) == (8, 6, 4, 3, 2)
    with pytest.raises(UserError, match=r"cluster\.min_workers: 9 is above the 8 ranks"):
        elastic("cluster.min_workers=9")


def test_random_seeds_differ_by_rank_and_step() -> None:
    seeds = {
        random_seed(seed, rank, 10 * n) for seed in (0, 1) for rank in range(9) for n in (1, 2)
    }
    assert len(seeds) == 36


@pytest.mark.slow
def test_fewer_ranks_and_more_again(tmp_path: Path) -> None:
    """2, then 1, then 2 ranks through the real worker: every sample once, in order, and the losses
    of the run that always had two."""
    data = make_dataset(tmp_path)
    schedule = {"schedule": {"name": "wsd", "decay_fraction": 0.0}}
    straight = write_config(tmp_path, data, tmp_path / "straight", steps=15, **schedule)
    assert run_worker(straight, ranks=2).returncode == 0
    common = {"cluster": {"elastic": True}, "checkpoint": {"interval": 5}}
    for last, ranks in ((5, 2), (10, 1), (15, 2)):
        config = write_config(tmp_path, data, tmp_path / "run", steps=last, **common, **schedule)
        ran = run_worker(config, ranks=ranks)
        assert ran.returncode == 0, ran.stderr
    starts = select(tmp_path / "run", RunRecord)
    runs = [(r.step, r.ranks, r.layout["ep"]) for r in starts if r.layout]
    assert runs == [(0, 2, 2), (5, 1, 1), (10, 2, 2)]
    samples = [r.samples for r in select(tmp_path / "run", StepRecord)]
    assert samples == [(8 * i, 8 * i + 8) for i in range(15)]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "straight"), abs=1e-3)
