"""Small folders of every foreign format, laid out by hand in milliseconds, to be spoilt."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from moelstrom.moe.checkpoint.foreign import megatron, open_source
from moelstrom.moe.checkpoint.foreign.wanted import Wanted
from moelstrom.moe.checkpoint.huggingface.export import export
from moelstrom.moe.checkpoint.huggingface.load import load
from moelstrom.moe.config import ModelConfig, MoEConfig

MODEL = ModelConfig(
    vocab_size=16,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    moe=MoEConfig(num_experts=2, top_k=1, expert_size=8),
)
WEIGHTS = "mp_rank_00_model_states.pt"
"""DeepSpeed's file of rank 0."""
STATES = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
State = dict[str, torch.Tensor]


def tensors() -> State:
    """Every parameter and buffer of MODEL."""
    wanted = Wanted(MODEL)
    shapes = {name: tuple(p.shape) for name, p in wanted.parameters.items()} | wanted.buffers
    return {
        name: torch.full(shape, 0.0 if "bias" in name else 0.5) for name, shape in shapes.items()
    }


def parameters() -> State:
    return {name: value for name, value in tensors().items() if name in Wanted(MODEL).parameters}


def moments(value: torch.Tensor) -> dict[str, Any]:
    return {"exp_avg": value, "exp_avg_sq": value, "step": torch.tensor(3.0)}


def write_dcp(path: Path) -> None:
    states = {name: moments(value) for name, value in parameters().items()}
    _save_dcp({"model": tensors(), "optim": {"state": states}}, path)


def _save_dcp(state: dict[str, Any], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=path, no_dist=True)


def deepspeed_main() -> dict[str, Any]:
    shapes = {f"model.{name}": value.shape for name, value in parameters().items()}
    return {
        "module": {f"model.{name}": value for name, value in tensors().items()},
        "buffer_names": [f"model.{name}" for name in Wanted(MODEL).buffers],
        "param_shapes": [shapes],
        "dp_world_size": 1,
        "global_steps": 3,
        "data": {"position": 7},
        "config": {},
        "model": MODEL.model_dump(mode="json"),
    }


def deepspeed_states() -> dict[str, Any]:
    flat = torch.cat([value.reshape(-1) for value in parameters().values()])
    states = {"fp32_flat_groups": [flat], "optimizer_state_dict": {"state": {0: moments(flat)}}}
    return {"optimizer_state_dict": states}


def write_deepspeed(path: Path) -> None:
    path.mkdir()
    torch.save(deepspeed_main(), path / WEIGHTS)
    torch.save(deepspeed_states(), path / STATES)


def write_universal(path: Path) -> None:
    path.mkdir()
    torch.save(deepspeed_main(), path / WEIGHTS)
    for name, value in parameters().items():
        place = path / "zero" / f"model.{name}"
        place.mkdir(parents=True)
        for file in ("fp32.pt", "exp_avg.pt", "exp_avg_sq.pt"):
            torch.save({"param": value}, place / file)
        torch.save(torch.tensor(3.0), place / "step.pt")


def megatron_tensors() -> State:
    """MODEL under Megatron's names, layer by layer."""
    found: State = {}
    for name, value in tensors().items():
        if not name.startswith("layers."):
            (theirs,) = (k for k, v in {**megatron.TABLES, **megatron.WHOLE}.items() if v == name)
            found[theirs] = value
            continue
        _, layer, leaf = name.split(".", 2)
        theirs = next((k for k, v in megatron.LAYER.items() if v == leaf), megatron.QKV)
        if theirs == megatron.QKV:
            value = torch.full((16, 8), 0.5)
        found[f"decoder.layers.{layer}.{theirs}"] = value
    return found


def write_megatron(path: Path, state: State | None = None) -> None:
    _save_dcp(dict(megatron_tensors() if state is None else state), path)
    (path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    torch.save({"iteration": 9, "optimizer": {"param_groups": [{"step": 9}]}}, path / "common.pt")


def write_huggingface(path: Path) -> None:
    """As Mixtral, in several files."""
    write_dcp(path.parent / "exported")
    export(open_source(path.parent / "exported", MODEL), path, torch.float32, 2000)


WRITERS: dict[str, Callable[[Path], None]] = {
    "dcp": write_dcp,
    "deepspeed": write_deepspeed,
    "universal": write_universal,
    "megatron": write_megatron,
    "huggingface": write_huggingface,
}


def read_all(kind: str, folder: Path) -> None:
    """Open and read everything, as an import does."""
    if kind == "huggingface":
        try:
            load(folder, folder.parent / "imported")
        finally:
            shutil.rmtree(folder.parent / "imported", ignore_errors=True)
        return
    # DeepSpeed's own record holds the model.
    source = open_source(folder, None if kind in ("deepspeed", "universal") else MODEL)
    for name in source.tensors:
        source.read(name)
