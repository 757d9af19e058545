"""The safetensors files of a Hugging Face folder as named tensors."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .... import UserError
from ..foreign.pickles import shown
from ..shardfile import ShardFile
from .export import CHUNK, INDEX
from .jsonfile import read_json
from .names import EMBEDDING, HEAD, STACKED, Entry

MAX_INDEX = 1 << 27
"""Bytes: DeepSeek-V3's has 9 million."""
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
                        f"{folder / name}: {shown(repr(key))} lies in {self._places[key]} too; "
                        "download the model again"
                    )
                self._places[key] = name

    @property
    def stacked(self) -> bool:
        """Whether the experts of a layer are one tensor."""
        return any(key.endswith(STACKED) for key in self._places)

    def check(self, wanted: list[Entry]) -> None:
        """Whether the tensors are exactly `wanted`, by name, shape and kind; else UserError.

        A head that `wanted` does not have, because it is the embedding, may repeat it.
        """
        names = {entry.key for entry in wanted}
        repeated = HEAD in self._places and HEAD not in names
        extra = [key for key in self._places if key not in names and not IGNORED.fullmatch(key)]
        extra = [key for key in extra if not (repeated and key == HEAD)]
        missing = [key for key in names if key not in self._places]
        for keys, why in ((missing, "is missing"), (extra, "has no place in the model")):
            if keys:
                more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
                raise UserError(
                    f"{self.folder}: tensor {shown(repr(min(keys)))} {why}{more}: config.json "
                    "describes another model, or a file is missing; download it again"
                )
        for entry in wanted:
            self._check_one(entry)
        if repeated:
            self._check_repeated(wanted[0])

    def _check_one(self, entry: Entry) -> None:
        dtype, shape, _ = self._find(entry)
        if shape != entry.key_shape or dtype not in FLOATS:
            raise UserError(
                f"{self._file(entry)}: {entry.key!r} is {dtype} {list(shape)}, but config.json "
                f"makes it {list(entry.key_shape)} of {', '.join(map(str, FLOATS))}; download the "
                "model again"
            )

    def _check_repeated(self, table: Entry) -> None:
        head = replace(table, key=HEAD)
        self._check_one(head)
        pairs = zip(self.chunks(table), self.chunks(head), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            raise UserError(
                f"{self._file(head)}: {HEAD!r} differs from {EMBEDDING!r}, but tie_word_embeddings "
                "in config.json says that both are one; set it to false to keep both"
            )

    def chunks(self, entry: Entry) -> Iterator[torch.Tensor]:
        """The part's elements in order, 1-D fp32, at most CHUNK of them at a time.

        Raises UserError for damage, and at the end for elements that are no numbers.
        """
        dtype, _, begin = self._find(entry)
        position, lost = begin + entry.start * dtype.itemsize, 0
        file = self._files[self._places[entry.key]]
        for start in range(0, entry.numel, CHUNK):
            data = torch.empty(min(CHUNK, entry.numel - start), dtype=dtype)
            raw = memoryview(data.view(torch.uint8).numpy().data)
            try:
                file.read_into(position + start * dtype.itemsize, raw)
            except (OSError, ValueError) as error:
                raise _damaged(self._file(entry), error) from None
            lost += data.numel() - int(data.isfinite().sum())
            yield data.float()
        if lost:
            raise UserError(
                f"{self._file(entry)}: {entry.key!r} has {lost} of {entry.numel} values that are "
                "NaN or infinite: no model can go on from them; give weights without"
            )

    def _find(self, entry: Entry) -> tuple[torch.dtype, tuple[int, ...], int]:
        try:
            return self._files[self._places[entry.key]].find(entry.key)
        except ValueError as error:
            raise _damaged(self._file(entry), error) from None

    def _file(self, entry: Entry) -> Path:
        return self.folder / self._places[entry.key]


def _file_names(folder: Path) -> list[str]:
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return [SINGLE]
        pickled = sorted(f.name for f in folder.glob("*.bin"))
        hint = f"{pickled[0]} is a pickle, which may run code when read: " if pickled else ""
        raise UserError(f"{folder}: no {SINGLE}; {hint}give a folder of safetensors files")
    places = read_json(folder / INDEX, MAX_INDEX).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) and places else [None]
    for name in names:
        if not isinstance(name, str) or not _BARE.fullmatch(name):
            raise UserError(
                f"{folder / INDEX}: weight_map has the file {shown(repr(name))}, not the bare name "
                "of a safetensors file in this folder; download the model again"
            )
    return sorted(set(map(str, names)))


def _open(file: Path) -> ShardFile:
    try:
        return ShardFile(file)
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file}: no whole safetensors file ({shown(error)}); download the model again"
    )
