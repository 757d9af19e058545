"""Run a test's function on several real processes joined by Gloo."""

import importlib.util
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(*args)` on `world` ranks with an initialised default group.

    `function` is at the top level of its file. Returns what each rank returned (picklable), by
    rank; raises the first rank's traceback if any failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        where = (function.__code__.co_filename, function.__name__)
        ranks = [
            context.Process(target=_child, args=(rank, world, folder, where, args))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(240)
            process.kill()
        outcomes = [_load(Path(folder) / f"out-{rank}") for rank in range(world)]
    for error, _ in outcomes:
        if error:
            raise AssertionError(error)
    return [result for _, result in outcomes]


def _load(path: Path) -> tuple[str | None, Any]:
    if not path.exists():
        return "a rank ended without a result", None
    return torch.load(path, weights_only=False)


def _child(rank: int, world: int, folder: str, where: tuple[str, str], args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    outcome: tuple[str | None, Any]
    try:
        outcome = (None, _function(*where)(*args))
    except BaseException:
        outcome = (traceback.format_exc(), None)
    torch.save(outcome, f"{folder}/out-{rank}.tmp")
    Path(f"{folder}/out-{rank}.tmp").rename(f"{folder}/out-{rank}")
    sys.stdout.flush()
    # A peer that failed must not hang this rank in the group's teardown.
    os._exit(0)


def _function(path: str, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("ranks_target", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["ranks_target"] = module
    spec.loader.exec_module(module)
    return getattr(module, name)
