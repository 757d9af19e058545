"""Folders of DeepSpeed's `save_checkpoint` with our engine: ZeRO 0 to 3, and expert parallel.

The fp32 master weights and the optimizer state are what is read; the model's file gives buffers,
shapes and the step. Where the parameters are is known as DeepSpeed 0.19 lays them out (see
engines/deepspeed_state.py).
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .... import UserError
from ...config import ModelConfig, OptimizerConfig
from ...optim.rules import rule
from .assembled import KINDS, Assembly, ForeignSource, Steps
from .records import plain
from .torchfile import FIX, Stored, TorchFile, understood
from .wanted import Wanted, find_model, with_vocabulary

MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
EXPERT_FILES = "expp_rank_*_optim_states.pt"
WRITER = "our engine with DeepSpeed 0.19"
META = ("data", "config", "model", "skipped", "health")
"""What our training loop saves beside the tensors, where it was given as `client_state`."""


@dataclass(frozen=True)
class Folder:
    """The files of one checkpoint; `main` is what rank 0 saved of the model."""

    path: Path
    models: dict[int, Path]
    optimizers: dict[int, Path]

    @cached_property
    def main(self) -> dict[str, Any]:
        """The model's state, the step and `client_state`."""
        return _dict(self.models[0])

    @cached_property
    def states(self) -> list[dict[str, Any]]:
        """The optimizer's state of every rank."""
        ranks = range(self.main["dp_world_size"])
        for rank in ranks:
            if rank not in self.optimizers:
                raise UserError(
                    f"{self.path}: no optimizer states of rank {rank} of {len(ranks)} "
                    f"(zero_pp_rank_{rank}_mp_rank_00_optim_states.pt): {FIX}"
                )
        return [_dict(self.optimizers[rank])["optimizer_state_dict"] for rank in ranks]

    @property
    def meta(self) -> dict[str, Any]:
        """Our loop's own record, if the save was given it."""
        if not all(isinstance(self.main.get(key), dict) for key in META[:3]):
            return {}
        return plain({key: self.main[key] for key in META if key in self.main})


def is_deepspeed(path: Path) -> bool:
    """Whether DeepSpeed wrote the folder."""
    return any(MODEL_FILE.fullmatch(entry.name) for entry in path.iterdir())


def open_deepspeed(path: Path, model: ModelConfig | None) -> ForeignSource:
    """The checkpoint in a folder such as `global_step100`. Raises UserError."""
    folder = find_files(path)
    with understood(path, WRITER):
        assembly = start(folder, model)
        steps = Steps(path)
        if not folder.optimizers:
            _take_whole(assembly, folder, steps)
        elif "fp32_flat_groups" in folder.states[0]:
            _take_partitions(assembly, folder, steps)
        else:
            _take_flat(assembly, folder, steps)
        meta = folder.meta
        return assembly.source(steps.last(folder.main["global_steps"], meta), meta)


def find_files(path: Path) -> Folder:
    """The folder's files by the rank that wrote them."""
    models: dict[int, Path] = {}
    optimizers: dict[int, Path] = {}
    for entry in sorted(path.iterdir()):
        for pattern, found in ((MODEL_FILE, models), (OPTIMIZER_FILE, optimizers)):
            match = pattern.fullmatch(entry.name)
            if match is None:
                continue
            rank = int(match[1] or 0)
            if int(match[2]) or rank in found:
                raise UserError(
                    f"{entry}: a second file of rank {rank}: it is of a tensor-parallel run, or "
                    "files of two saves are mixed; give a folder of one save of our engine"
                )
            found[rank] = entry
    if 0 not in models:
        raise UserError(f"{path}: no model states of rank 0 in it: {FIX}")
    return Folder(path, models, optimizers)


def start(folder: Folder, model: ModelConfig | None) -> Assembly:
    """An assembly that has the model's buffers."""
    module = folder.main["module"]
    config = find_model(folder.path, folder.meta, model)
    shapes = {name: v.shape for name, v in module.items()}
    for group in folder.main.get("param_shapes") or []:
        shapes |= dict(group.items())
    config = with_vocabulary(config, shapes["model.embedding"][0])
    assembly = Assembly(folder.path, Wanted(config))
    for name in folder.main["buffer_names"]:
        assembly.add("model", known(assembly, name), stored(module[name]))
    return assembly


def known(assembly: Assembly, name: str) -> str:
    """The model's own name of a parameter. Raises UserError for another model's."""
    found = assembly.wanted.known(name)
    if found is None:
        raise UserError(
            f"{assembly.folder}: it holds {name}, which the model in the config does not have: "
            "give the config of the run that wrote it"
        )
    return found


def _take_flat(assembly: Assembly, folder: Folder, steps: Steps) -> None:
    """ZeRO 1 and 2: every group's parameters end to end, cut over the ranks that share them."""
    world = len(folder.states)
    done: dict[tuple[str, int], int] = defaultdict(int)
    for rank, state in enumerate(folder.states):
        for group, mapping in enumerate(state["param_slice_mappings"]):
            ep = world // state["partition_count"][group]
            tensors = {"model": stored(state["single_partition_of_fp32_groups"][group])}
            tensors |= moments(state["base_optimizer_state"]["state"][group], steps)
            for long_name, fragment in mapping.items():
                name = known(assembly, long_name)
                # Ranks [k ep, (k + 1) ep) hold every expert once, in order.
                size = assembly.wanted.numel(name) // ep
                at = rank % ep * size + done[name, rank % ep]
                done[name, rank % ep] += fragment.numel
                for prefix, values in tensors.items():
                    assembly.add_run(prefix, name, at, fragment.numel, values, fragment.start)


def _take_partitions(assembly: Assembly, folder: Folder, steps: Steps) -> None:
    """ZeRO 3: an equal part of every parameter to each rank, the last one padded."""
    world = len(folder.states)
    for rank, state in enumerate(folder.states):
        for group, shapes in enumerate(folder.main["param_shapes"]):
            tensors = {"model": stored(state["fp32_flat_groups"][group])}
            tensors |= moments(state["optimizer_state_dict"]["state"][group], steps)
            position = 0
            for long_name, shape in shapes.items():
                name = known(assembly, long_name)
                whole = assembly.wanted.numel(name)
                if tuple(shape) != assembly.wanted.shape(name):
                    raise assembly.misshapen(name, tuple(shape))
                size = -(-whole // world)
                numel = max(0, min(size, whole - rank * size))
                for prefix, values in tensors.items():
                    assembly.add_run(prefix, name, rank * size, numel, values, position)
                position += size


def _take_whole(assembly: Assembly, folder: Folder, steps: Steps) -> None:
    """ZeRO 0: whole parameters in the order of the optimizer's groups."""
    if list(folder.path.glob(EXPERT_FILES)):
        raise UserError(
            f"{folder.path}: with layout.zero 0 and layout.ep above 1 DeepSpeed saves the experts "
            "of rank 0 only: there is no whole model here; save with layout.zero 1, or our own "
            "checkpoints"
        )
    module, saved = folder.main["module"], folder.main["optimizer"]
    optimizer = saved.get("optimizer_state_dict", saved)
    names = _groups(assembly.wanted, any(g["rule"] == "muon" for g in optimizer["param_groups"]))
    long_names = {known(assembly, name): name for name in module}
    absent = assembly.wanted.parameters.keys() - long_names.keys()
    if absent:
        raise UserError(
            f"{folder.path}: no {min(absent)}, which the model in the config has: give the config "
            "of the run that wrote it"
        )
    for group, (held, mine) in enumerate(zip(optimizer["param_groups"], names, strict=True)):
        for i, (index, name) in enumerate(zip(held["params"], mine, strict=True)):
            masters = saved.get("fp32_groups")
            master = masters[group][i] if masters else module[long_names[name]]
            assembly.add("model", name, stored(master))
            for prefix, values in moments(optimizer["state"][int(index)], steps).items():
                assembly.add(prefix, name, values)


def _groups(wanted: Wanted, muon: bool) -> list[list[str]]:
    """Our engine's parameter groups (engines/deepspeed/engine.py), by name."""
    config = OptimizerConfig(name="muon" if muon else "adamw")
    kinds: dict[tuple[bool, str, bool], list[str]] = {}
    for name, p in wanted.parameters.items():
        kind = (p.expert, rule(p.spec, config), p.spec.decay)
        kinds.setdefault(kind, []).append(name)
    return list(kinds.values())


def moments(state: dict[str, Any], steps: Steps) -> dict[str, Stored]:
    """The optimizer's tensors by the prefix of their canonical names."""
    steps.see(state.get("step"))
    return {KINDS[key]: stored(value) for key, value in state.items() if key in KINDS}


def stored(found: Any) -> Stored:
    """`found` itself, if it is a tensor."""
    if not isinstance(found, Stored):
        raise ValueError(f"a {type(found).__name__} in place of a tensor")
    return found


def _dict(file: Path) -> dict[str, Any]:
    data = TorchFile(file).data
    if not isinstance(data, dict):
        raise UserError(f"{file}: holds no states of DeepSpeed: {FIX}")
    return data
