"""torch.distributed.checkpoint folders of our models: `.metadata` and `__0_0.distcp` files."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .... import UserError
from ...config import ModelConfig
from .. import folder as disk
from .assembled import KINDS, Assembly, ForeignSource, Steps
from .pickles import MAX_FLAT, MAX_PICKLE, PickleLoader, explain, shown
from .torchfile import FIX, Stored, TorchFile, Window, read_number, refusing, understood
from .values import Chunk, Chunks, Values, check_boxes
from .wanted import Wanted, find_model, with_vocabulary

METADATA = ".metadata"
WRITER = "torch.distributed.checkpoint"
_STATE = re.compile(rf"(?:.*\.)?state\.(?P<name>.+)\.(?P<kind>{'|'.join(KINDS)}|step)")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ChunkPlace:
    """Bytes of one saved item: an archive of torch.save inside a file."""

    file: str
    offset: int
    size: int


class Item:
    """One saved box of a tensor. Its archive is opened when it is first read."""

    def __init__(
        self, folder: Path, place: ChunkPlace, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        self._folder, self._place = folder, place
        self.dtype, self.shape = dtype, shape

    @cached_property
    def _stored(self) -> Stored:
        found = open_item(self._folder, self._place).data
        if not isinstance(found, Stored) or (found.dtype, found.shape) != (self.dtype, self.shape):
            raise UserError(
                f"{self._folder / self._place.file}: holds something else at byte "
                f"{self._place.offset} than {METADATA} says: files of two saves are mixed; {FIX}"
            )
        return found

    def read_into(self, out: torch.Tensor, start: int) -> None:
        """Fill `out` from element `start` on."""
        self._stored.read_into(out, start)


class DCPFolder:
    """The tensors of a folder, by their flat names; no model is known here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = _load(folder / METADATA)
        self._bytes: dict[str, int] = {}
        with understood(folder / METADATA, WRITER):
            self._places = {
                (_name(index.fqn), _sizes(getattr(index, "offset", None) or ())): self._place(info)
                for index, info in _items(metadata.storage_data)
            }
            self._held = {_name(k): v for k, v in _items(metadata.state_dict_metadata)}
            self.tensors = {
                name: self._tensor(name, held)
                for name, held in self._held.items()
                if hasattr(held, "chunks")
            }

    def _place(self, info: Any) -> ChunkPlace:
        file = info.relative_path
        if not isinstance(file, str) or not _PLAIN.fullmatch(file):
            named = shown(repr(file)) if isinstance(file, str | int) else type(file).__name__
            raise UserError(
                f"{self.folder / METADATA}: it names the file {named}, outside its folder: {FIX}"
            )
        if getattr(info, "transform_descriptors", None):
            raise UserError(
                f"{self.folder / file}: compressed or encrypted: save it without extensions"
            )
        place = ChunkPlace(file, *_sizes((info.offset, info.length)))
        if place.offset + place.size > self._size(file):
            raise UserError(
                f"{self.folder / file}: cannot be read (it ends at byte {self._size(file)}, but "
                f"{METADATA} knows more: truncated?): {FIX}"
            )
        return place

    def _size(self, file: str) -> int:
        if file not in self._bytes:
            with refusing(self.folder / file):
                self._bytes[file] = disk.regular_size(self.folder / file)
        return self._bytes[file]

    def _tensor(self, name: str, held: Any) -> Values:
        dtype, shape = held.properties.state[0], _sizes(held.size)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name} has no type")
        chunks = []
        for box in held.chunks:
            offsets, sizes = _sizes(box.offsets), _sizes(box.sizes)
            place = self._places[name, offsets]
            # An archive holds more than its tensor: what claims more elements than bytes is none.
            if math.prod(sizes) * dtype.itemsize > place.size:
                raise ValueError(f"a piece of {name} is larger than its {place.size} bytes")
            chunks.append(Chunk(offsets, Item(self.folder, place, dtype, sizes)))
        check_boxes(name, shape, [(c.offsets, c.values.shape) for c in chunks])
        return Chunks(dtype, shape, chunks)

    def number(self, name: str) -> Any:
        """The number saved under `name`: the only element of a tensor, or plain data; None if it
        is not there."""
        if name in self.tensors:
            return read_number(self.tensors[name], self.folder / METADATA)
        place = self._places.get((name, ()))
        return None if place is None else open_item(self.folder, place).data

    def names(self) -> list[str]:
        """Everything that the folder holds, tensors and other objects."""
        return list(self._held)


def open_item(folder: Path, place: ChunkPlace) -> TorchFile:
    """The archive of one saved item."""
    return TorchFile(folder / place.file, place.offset, place.size)


def open_dcp(folder: Path, model: ModelConfig | None) -> ForeignSource:
    """A folder that `dcp.save` wrote of a model's, and if it is there its optimizer's, state."""
    with understood(folder, WRITER):
        held = DCPFolder(folder)
        config = find_model(folder, {}, model)
        for name in [] if config.vocab_size else held.tensors:
            if name.endswith(".embedding") and not _STATE.fullmatch(f"{name}.step"):
                config = with_vocabulary(config, held.tensors[name].shape[0])
        assembly, steps = Assembly(folder, Wanted(config)), Steps(folder)
        for name in held.names():
            _take(assembly, held, name, steps)
        return assembly.source(steps.last(0, {}), {})


def _take(assembly: Assembly, held: DCPFolder, name: str, steps: Steps) -> None:
    """Place one saved object, if it belongs to the model or its optimizer."""
    state = _STATE.fullmatch(name)
    known = assembly.wanted.known(state["name"] if state else name)
    if known is None:
        return
    if state and state["kind"] == "step":
        steps.see(held.number(name))
    elif name in held.tensors:
        prefix = KINDS[state["kind"]] if state else "model"
        assembly.add(prefix, known, held.tensors[name])


def _load(file: Path) -> Any:
    window = Window(file)
    with refusing(file):
        if window.size > MAX_PICKLE:
            raise ValueError("too large to be real")
        data = window.read()
    try:
        return PickleLoader(data).load()
    except Exception as error:
        # A damaged pickle raises whatever its bytes happen to call.
        raise UserError(f"{file}: refused: {explain(error)}: {FIX}") from None


def _items(found: Any) -> Iterable[tuple[Any, Any]]:
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} in place of a dictionary")
    return found.items()


def _name(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError(f"a {type(found).__name__} in place of a name")
    return found


def _sizes(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple | list) or len(numbers) > MAX_FLAT:
        raise ValueError(f"a {type(numbers).__name__} in place of sizes")
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise ValueError("sizes are not sizes")
    return tuple(numbers)
