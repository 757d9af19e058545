"""Write a checkpoint's weights as a folder that transformers loads."""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from .... import UserError
from ...config import ModelConfig
from ...state.source import Source, TensorInfo
from .. import folder as disk
from ..manifest import explain
from ..tensorfile import TensorFile
from .architectures import Architecture, choose, to_config
from .kept import CONFIG, GENERATION, KEPT, POSITIONS, generation_config, merge_config
from .names import Entry, buffers, entries

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CHUNK = 1 << 24
"""Elements held in memory at a time."""
INDEX = "model.safetensors.index.json"
Progress = Callable[[int, int], None]
"""Gets bytes done and all bytes."""


@dataclass(frozen=True)
class Export:
    """What was written: the class that reads it, parameters, and each tensor file's bytes."""

    folder: Path
    class_name: str
    parameters: int
    files: dict[str, int]


def export(
    source: Source,
    out: Path,
    dtype: torch.dtype,
    max_shard: int,
    eos: int | None = None,
    texts: Mapping[str, bytes] | None = None,
    progress: Progress | None = None,
) -> Export:
    """Write the model of `source` into the new folder `out`, in files of at most `max_shard` bytes
    (a single larger tensor gets its own), with `texts` as further files.

    `eos` is the id that ends a text; without it special tokens and settings are those that
    `import-hf` read, and none where nobody said any. Positions are those, or the run's length.

    The folder appears whole or not at all; memory holds a chunk of one tensor. Raises UserError
    for a model that no class computes, for damage, and where `out` cannot be written.
    """
    model = model_of(source)
    found = choose(model)
    _check_biases(source, model)
    plan = _split(entries(model, found), dtype, max_shard)
    files = {**_configs(source, model, found, dtype, eos), **(texts or {})}
    if len(plan) > 1:
        files[INDEX] = _index(plan, dtype)
    with new_folder(out) as temporary:
        sizes = _write(source, temporary, plan, dtype, progress)
        for file, text in files.items():
            disk.write_synced(temporary / file, text)
    count = sum(entry.numel for part in plan.values() for entry in part)
    return Export(out, found.class_name, count, sizes)


def _configs(
    source: Source, model: ModelConfig, found: Architecture, dtype: torch.dtype, eos: int | None
) -> dict[str, bytes]:
    """config.json and, where there is something to say, generation_config.json."""
    kept = source.meta.get(KEPT) or {}
    config = merge_config(
        to_config(model, found, str(dtype).removeprefix("torch.")), found, kept, eos
    )
    length = source.meta.get("config", {}).get("data", {}).get("seq_len")
    if length and config.get(POSITIONS, 0 if not kept else length) < length:
        config[POSITIONS] = length
    files = {CONFIG: _json(config)}
    generation = generation_config(kept, eos)
    if generation is not None:
        files[GENERATION] = _json(generation)
    return files


def model_of(source: Source) -> ModelConfig:
    """The model that a checkpoint was saved from; UserError if it does not say."""
    try:
        return ModelConfig.model_validate(source.meta["model"])
    except KeyError:
        raise UserError(
            f"{source.folder}: its meta has no `model`; give a checkpoint of `moelstrom train`"
        ) from None
    except ValidationError as error:
        raise UserError(
            f"{source.folder}: its model is not one of this moelstrom ({explain(error)}); use the "
            "moelstrom that wrote it"
        ) from None


def _check_biases(source: Source, model: ModelConfig) -> None:
    for name in buffers(model):
        if source.read(name).any():
            raise UserError(
                f"model.moe.bias_update_rate: {name} is not zero, and no class of transformers "
                "here has a balancing bias; a model trained with 0 can be exported"
            )


def _split(tensors: list[Entry], dtype: torch.dtype, limit: int) -> dict[str, list[Entry]]:
    """Consecutive tensors by file name."""
    parts: list[list[Entry]] = [[]]
    room = limit
    for entry in tensors:
        size = entry.numel * dtype.itemsize
        if parts[-1] and size > room:
            parts.append([])
            room = limit
        parts[-1].append(entry)
        room -= size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    last = len(parts)
    return {f"model-{i:05d}-of-{last:05d}.safetensors": p for i, p in enumerate(parts, 1)}


def _index(plan: Mapping[str, list[Entry]], dtype: torch.dtype) -> bytes:
    total = sum(entry.numel for part in plan.values() for entry in part) * dtype.itemsize
    places = {entry.key: file for file, part in plan.items() for entry in part}
    return _json({"metadata": {"total_size": total}, "weight_map": places})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _write(
    source: Source,
    folder: Path,
    plan: Mapping[str, list[Entry]],
    dtype: torch.dtype,
    progress: Progress | None,
) -> dict[str, int]:
    """Write every file; their bytes by name."""
    total = sum(entry.numel for part in plan.values() for entry in part)
    sizes, done = {}, 0
    for name, part in plan.items():
        kinds = {entry.key: TensorInfo(dtype, entry.shape) for entry in part}
        with TensorFile(folder / name, kinds, {"format": "pt"}) as file:
            for entry in part:
                for start in range(0, entry.numel, CHUNK):
                    numel = min(CHUNK, entry.numel - start)
                    data = source.read(entry.name, entry.offset + start, numel)
                    file.write(entry.key, data.to(dtype), start)
                    done += numel
                    if progress:
                        progress(done * dtype.itemsize, total * dtype.itemsize)
        sizes[name] = file.size
    return sizes


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` at the end, or goes after an error.

    Raises UserError where `out` holds something or the disk refuses.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"{out}: exists already; give a new folder")
    temporary = out.parent / f".tmp-{out.name}-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        disk.sync(temporary)
        temporary.rename(out)
        disk.sync(out.parent)
    except OSError as error:
        raise _unwritable(out, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"{out}: {error.strerror or error}; give a folder with room to write")
