"""A Hugging Face model as a checkpoint of step 0, which a run starts from."""

import hashlib
import math
import shutil
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from .... import UserError
from ...config import ModelConfig
from ...state.source import TensorInfo
from .. import folder as disk
from ..commit import merge
from ..lease import take
from ..manifest import dump
from ..tensorfile import TensorFile
from .architectures import from_config
from .export import Progress
from .kept import CONFIG, KEPT, read_kept
from .names import Entry, buffers, entries
from .weights import Weights


def load(folder: Path, path: Path, progress: Progress | None = None) -> tuple[Path, ModelConfig]:
    """Write the weights of the Hugging Face `folder` as `path`/step-00000000, in fp32 and without
    optimizer state; returns that folder and the model for a run's config.

    Its meta has "hf": what exporting it again needs and no model of ours holds (see kept.py). The
    checkpoint appears whole or not at all; memory holds a chunk of one tensor. Raises UserError
    for a model that ours cannot compute, damage, pickles, and where `path` holds a step 0 already,
    belongs to a running run or cannot be written.
    """
    kept = read_kept(folder)
    found, model = from_config(kept["config"], str(folder / CONFIG))
    weights = Weights(folder)
    wanted = entries(model, found, weights.stacked)
    weights.check(wanted)
    final = disk.step_folder(path, 0)
    if final.exists() or final.is_symlink():
        raise UserError(f"{final}: exists already; give another checkpoint folder")
    lease = take(path, "saves", "checkpoint.path", patience_s=0)
    temporary = disk.temporary_folder(path, 0, lease.session)
    meta = {"data": None, "config": {}, "model": model.model_dump(mode="json"), KEPT: kept}
    try:
        temporary.mkdir(parents=True)
        report = _Writer(weights, temporary / disk.shard_name(0), model, progress).run(wanted)
        disk.publish(temporary, final, dump(merge(0, meta, [report])), lease.check)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a folder with room") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lease.release()
    return final, model


class _Writer:
    """Writes one file and gathers what the manifest says of it."""

    def __init__(
        self, weights: Weights, file: Path, model: ModelConfig, progress: Progress | None
    ) -> None:
        self.weights, self.file, self.model, self.progress = weights, file, model, progress
        self.tensors: dict[str, Any] = {}
        self.done = 0

    def run(self, wanted: list[Entry]) -> dict[str, Any]:
        """Write the tensors; this file's report, as `merge` takes it."""
        shapes = {entry.name: entry.whole for entry in wanted} | buffers(self.model)
        self.total = 4 * sum(entry.numel for entry in wanted)
        kinds = {
            _key(name): TensorInfo(torch.float32, (math.prod(shape),))
            for name, shape in shapes.items()
        }
        with TensorFile(self.file, kinds) as out:
            for name, parts in groupby(wanted, key=lambda entry: entry.name):
                chunks = (chunk for entry in parts for chunk in self.weights.chunks(entry))
                self._tensor(out, name, shapes[name], chunks)
            for name, shape in buffers(self.model).items():
                self._tensor(out, name, shape, [torch.zeros(shape)])
        return {"step": 0, "file": self.file.name, "size": out.size, "tensors": self.tensors}

    def _tensor(
        self, out: TensorFile, name: str, shape: tuple[int, ...], chunks: Iterable[torch.Tensor]
    ) -> None:
        at, sha256 = 0, hashlib.sha256()
        for chunk in chunks:
            out.write(_key(name), chunk, at)
            sha256.update(chunk.numpy().data)
            at += chunk.numel()
            self.done += chunk.nbytes
            if self.progress:
                self.progress(min(self.done, self.total), self.total)
        piece = {"file": self.file.name, "key": _key(name), "offset": 0, "numel": at}
        pieces = [{**piece, "sha256": sha256.hexdigest()}]
        self.tensors[name] = {"dtype": "float32", "shape": list(shape), "pieces": pieces}


def _key(name: str) -> str:
    return f"{name}@0"
