"""The safetensors files of a Hugging Face folder as named tensors."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .... import UserError
from ..shardfile import ShardFile
from .export import CHUNK, INDEX
from .names import Entry

SINGLE = "model.safetensors"
FLOATS = torch.float32, torch.float16, torch.bfloat16
_BARE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.safetensors")
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")
"""What old versions of transformers stored and every reader computes."""


class Weights:
    """The tensors of `folder`, by key; opening it reads the headers only.

    Raises UserError, naming the file, for a folder without safetensors, damage, and a file outside
    the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {name: _open(folder / name) for name in _file_names(folder)}
        self._places: dict[str, str] = {}
        for name, file in self._files.items():
            for key in file.keys():  # noqa: SIM118 (no mapping)
                if key in self._places:
                    raise UserError(
                        f"{folder / name}: {key!r} lies in {self._places[key]} too; download the "
                        "model again"
                    )
                self._places[key] = name

    def check(self, wanted: list[Entry]) -> None:
        """Whether the tensors are exactly `wanted`, by name, shape and kind; else UserError."""
        names = {entry.key for entry in wanted}
        extra = [key for key in self._places if key not in names and not IGNORED.fullmatch(key)]
        missing = [key for key in names if key not in self._places]
        for keys, why in ((missing, "is missing"), (extra, "has no place in the model")):
            if keys:
                more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
                raise UserError(
                    f"{self.folder}: tensor {min(keys)!r} {why}{more}: config.json describes "
                    "another model, or a file is missing; download it again"
                )
        for entry in wanted:
            self._check_one(entry)

    def _check_one(self, entry: Entry) -> None:
        dtype, shape, _ = self._find(entry)
        if shape != entry.shape or dtype not in FLOATS:
            raise UserError(
                f"{self._file(entry)}: {entry.key!r} is {dtype} {list(shape)}, but config.json "
                f"makes it {list(entry.shape)} of {', '.join(map(str, FLOATS))}; download the "
                "model again"
            )

    def chunks(self, entry: Entry) -> Iterator[torch.Tensor]:
        """The tensor's elements in order, 1-D fp32, at most CHUNK of them at a time."""
        dtype, _, position = self._find(entry)
        file = self._files[self._places[entry.key]]
        for start in range(0, entry.numel, CHUNK):
            data = torch.empty(min(CHUNK, entry.numel - start), dtype=dtype)
            raw = memoryview(data.view(torch.uint8).numpy().data)
            try:
                file.read_into(position + start * dtype.itemsize, raw)
            except (OSError, ValueError) as error:
                raise _damaged(self._file(entry), error) from None
            yield data.float()

    def _find(self, entry: Entry) -> tuple[torch.dtype, tuple[int, ...], int]:
        try:
            return self._files[self._places[entry.key]].find(entry.key)
        except ValueError as error:
            raise _damaged(self._file(entry), error) from None

    def _file(self, entry: Entry) -> Path:
        return self.folder / self._places[entry.key]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError names the file."""
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a Hugging Face model's folder") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); download the model again") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a JSON object; download the model again")
    return found


def _file_names(folder: Path) -> list[str]:
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return [SINGLE]
        pickled = sorted(f.name for f in folder.glob("*.bin"))
        hint = f"{pickled[0]} is a pickle, which may run code when read: " if pickled else ""
        raise UserError(f"{folder}: no {SINGLE}; {hint}give a folder of safetensors files")
    places = read_json(folder / INDEX).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) and places else [None]
    for name in names:
        if not isinstance(name, str) or not _BARE.fullmatch(name):
            raise UserError(
                f"{folder / INDEX}: weight_map has the file {name!r}, not the bare name of a "
                "safetensors file in this folder; download the model again"
            )
    return sorted(set(map(str, names)))


def _open(file: Path) -> ShardFile:
    try:
        return ShardFile(file)
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    why = " ".join(str(error).split())
    return UserError(f"{file}: no whole safetensors file ({why}); download the model again")
