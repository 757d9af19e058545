"""Folders of DeepSpeed's `ds_to_universal`: one file for each parameter and kind of state."""

import math
from pathlib import Path
from typing import Any

from .... import UserError
from ...config import ModelConfig
from .assembled import KINDS, Assembly, ForeignSource, Steps
from .deepspeed import WRITER, find_files, known, start
from .torchfile import FIX, Stored, TorchFile, understood

PARAMETERS = "zero"
FILES = {"fp32.pt": "model", **{f"{kind}.pt": prefix for kind, prefix in KINDS.items()}}


def is_universal(path: Path) -> bool:
    """Whether `ds_to_universal` wrote the folder."""
    return (path / PARAMETERS).is_dir()


def open_universal(path: Path, model: ModelConfig | None) -> ForeignSource:
    """The checkpoint in a folder such as `global_step100_universal`. Raises UserError."""
    folder = find_files(path)
    with understood(path, WRITER):
        assembly = start(folder, model)
        steps = Steps(path)
        for place in sorted((path / PARAMETERS).iterdir()):
            name = assembly.wanted.known(place.name)
            if place.is_dir() and name not in assembly.wanted.buffers:
                _take(assembly, known(assembly, place.name), place, steps)
        _take_groups(path / PARAMETERS / "optimizer_state.pt", steps)
        return assembly.source(steps.last(folder.main["global_steps"], folder.meta), folder.meta)


def _take(assembly: Assembly, name: str, place: Path, steps: Steps) -> None:
    """The files of one parameter."""
    for file, prefix in FILES.items():
        if (place / file).exists():
            values, numel = _tensor(place / file), assembly.wanted.numel(name)
            if math.prod(values.shape) != numel:
                # From ZeRO 3 they come flat: only their size is known.
                raise UserError(
                    f"{place / file}: {list(values.shape)}, but the model in the config has "
                    f"{numel} elements there: give the config of the run that wrote it"
                )
            assembly.add_run(prefix, name, 0, numel, values, 0)
    if (place / "step.pt").exists():
        steps.see(TorchFile(place / "step.pt").data)


def _take_groups(file: Path, steps: Steps) -> None:
    """The step that ZeRO 3 keeps with its groups."""
    if file.exists():
        groups = TorchFile(file).data.get("optimizer_state_dict", {}).get("state", {})
        for state in groups.values():
            steps.see(state.get("step"))


def _tensor(file: Path) -> Stored:
    data: Any = TorchFile(file).data
    found = data.get("param") if isinstance(data, dict) else data
    if not isinstance(found, Stored):
        raise UserError(f"{file}: holds no tensor: {FIX}")
    return found
