"""Checkpoints of any format that we know, behind one protocol."""

import re
from pathlib import Path

from .... import UserError
from ...config import ModelConfig
from ...state.source import Source
from .. import folder as disk
from ..plainfile import read_plain
from ..reader import Reader
from .pickles import shown
from .torchfile import refusing

ITERATION = "latest_checkpointed_iteration.txt"
POINTERS = ("latest", "latest_universal", ITERATION)
"""Files of DeepSpeed and Megatron that name the newest checkpoint beside them."""
MAX_POINTER = 4096
"""Bytes."""
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
KNOWN = "moelstrom, torch DCP, DeepSpeed ZeRO or universal, Megatron torch_dist"


def open_source(folder: Path | str, model: ModelConfig | None = None) -> Source:
    """Open a complete checkpoint, whatever wrote it; the files say what that was.

    `model` is the model of a foreign checkpoint; without it the checkpoint's own record, then the
    `config.yaml` in its folder or in one of the three above is taken. A folder that only names its
    newest checkpoint (`latest`, `latest_checkpointed_iteration.txt`) opens that one. Foreign
    checkpoints are checked for completeness here, their data when it is read. Their `meta` has
    "model" and, where they carry it, "config" and "data".

    Raises UserError for what is damaged, incomplete, of another model, or unknown.
    """
    path = Path(folder)
    with refusing(path):
        return _open(path, model)


def _open(path: Path, model: ModelConfig | None) -> Source:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give one that holds a checkpoint")
    if (path / disk.MANIFEST).exists() or (path / disk.MARKER).exists():
        return Reader(path)
    for pointer in POINTERS:
        if (path / pointer).is_file():
            return _open(_follow(path / pointer), model)
    return _open_foreign(path, model)


def _open_foreign(path: Path, model: ModelConfig | None) -> Source:
    from .megatron import is_megatron, open_megatron

    if is_megatron(path):
        return open_megatron(path, model)
    if (path / ".metadata").exists():
        from .dcp import open_dcp

        return open_dcp(path, model)
    from .deepspeed import is_deepspeed, open_deepspeed
    from .universal import is_universal, open_universal

    if is_universal(path):
        return open_universal(path, model)
    if is_deepspeed(path):
        return open_deepspeed(path, model)
    raise UserError(f"{path}: no checkpoint of a known format: give a folder of {KNOWN}")


def _follow(pointer: Path) -> Path:
    """The folder that a file such as `latest` names, beside it."""
    name = read_plain(pointer, MAX_POINTER).decode(errors="replace").strip()
    if pointer.name == ITERATION and name.isdecimal():
        name = f"iter_{int(name):07d}"
    if not PLAIN.fullmatch(name) or not (pointer.parent / name).is_dir():
        raise UserError(
            f"{pointer}: it names {shown(repr(name))}, which is no folder beside it: give the "
            "checkpoint's own"
        )
    return pointer.parent / name
