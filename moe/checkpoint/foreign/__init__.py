"""Checkpoints of any format that we know, behind one protocol."""

from pathlib import Path

from .... import UserError
from ...config import ModelConfig
from .. import folder as disk
from ..reader import Reader
from ..source import Source

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
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give one that holds a checkpoint")
    if (path / disk.MANIFEST).exists() or (path / disk.MARKER).exists():
        return Reader(path)
    if (path / ".metadata").exists():
        from .dcp import open_dcp

        return open_dcp(path, model)
    raise UserError(f"{path}: no checkpoint of a known format: give a folder of {KNOWN}")
