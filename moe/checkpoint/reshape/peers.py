"""The same state as torch DCP and DeepSpeed hold it, and their own ways to another layout."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ...config import EngineConfig, LayoutConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from ...engines import EngineOptions, make_engine
from ...grid import Grid
from ...state.names import Local, fill
from ..layouts.parameters import Skeleton
from ..reader import Reader

WRITERS = 2
"""Ranks that save the peers' checkpoints."""
DEEPSPEED, UNIVERSAL, DCP = "deepspeed", "universal", "dcp"


def write_peers(ours: Path, folder: Path, threads: int) -> None:
    """Save the state of our checkpoint `ours` as DeepSpeed and DCP do, from two ranks each."""
    store = folder / "store"
    torch.multiprocessing.spawn(_writer, (str(store), ours, folder, threads), WRITERS)
    store.unlink()


def _writer(rank: int, store: str, ours: Path, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    # DeepSpeed logs on standard output, which may be this benchmark's JSON.
    sys.stdout = sys.stderr
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WRITERS))
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WRITERS)
    reader = Reader(ours)
    model = ModelConfig.model_validate(reader.meta["model"])
    _save_dcp(reader, model, folder / DCP)
    _save_deepspeed(reader, model, folder / DEEPSPEED)
    dist.destroy_process_group()


def _save_deepspeed(reader: Reader, model: ModelConfig, folder: Path) -> None:
    from deepspeed.moe.layer import MoE

    options = EngineOptions(
        engine=EngineConfig(name="deepspeed"),
        layout=LayoutConfig(dp=WRITERS, zero=1),
        optimizer=OptimizerConfig.model_validate(reader.meta["config"]["optimizer"]),
        schedule=ScheduleConfig(),
        steps=10,
    )
    engine: Any = make_engine(options, Grid(options.layout))
    engine.setup(torch.device("cpu"))
    engine.build(model, seed=0)
    engine.import_state(reader)
    for module in engine._engine.module.modules():
        if isinstance(module, MoE):
            # Its save looks for them; our engine only borrows the layer's process groups.
            module.expert_group_name, module.num_local_experts = "ep_size_1", 1
    with contextlib.redirect_stdout(io.StringIO()):
        engine._engine.save_checkpoint(str(folder), tag="saved", client_state=reader.meta)


def _save_dcp(reader: Reader, model: ModelConfig, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (WRITERS,))
    weights: dict[str, Any] = {}
    moments: dict[str, dict[str, Any]] = {}
    skeleton = Skeleton(model)
    for p in skeleton.parameters:
        weights[p.name] = _sharded(reader, "model", p, mesh)
        kinds = ("exp_avg", "exp_avg_sq")
        moments[p.name] = {k: _sharded(reader, f"adamw/{k}", p, mesh) for k in kinds}
    weights |= {name: torch.zeros(spec.shape) for name, spec in skeleton.buffers}
    dcp.save({"model": weights, "optim": {"state": moments}}, checkpoint_id=folder)


def _sharded(reader: Reader, prefix: str, p: Local, mesh: DeviceMesh) -> torch.Tensor:
    whole = torch.empty(p.shape)
    fill(reader, prefix, p.logicals(), 0, whole.view(-1))
    return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)


def convert_to_universal(folder: Path, workers: int) -> Path:
    """DeepSpeed's conversion, which any of its layouts loads; the folder that it made."""
    out = folder / UNIVERSAL
    arguments = argparse.Namespace(
        input_folder=str(folder / DEEPSPEED / "saved"),
        output_folder=str(out),
        num_extract_workers=workers,
        num_merge_workers=workers,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from deepspeed.checkpoint.ds_to_universal import main

        main(arguments)
    return out


def reshard_dcp(folder: Path, out: Path, threads: int) -> Path:
    """Load all of a DCP checkpoint of two ranks in one process and save it as that one's."""
    metadata = FileSystemReader(folder / DCP).read_metadata().state_dict_metadata
    state: dict[str, Any] = {
        name: torch.empty(info.size, dtype=info.properties.dtype)
        for name, info in metadata.items()
        if isinstance(info, TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=FileSystemReader(folder / DCP), no_dist=True)
    dcp.save(state, storage_writer=FileSystemWriter(out, thread_count=threads), no_dist=True)
    return out


def files_below(folder: Path) -> Iterator[Path]:
    """Every plain file."""
    return (path for path in folder.rglob("*") if path.is_file())
