"""torch.distributed.checkpoint folders of our models: `.metadata` and `__0_0.distcp` files."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .... import UserError
from ...config import ModelConfig
from .assembled import KINDS, Assembly, ForeignSource, Steps
from .pickles import Loader, explain
from .torchfile import FIX, MAX_PICKLE, Stored, TorchFile, Window, refusing
from .values import Chunk, Chunks, Values
from .wanted import Wanted, find_model, with_vocabulary

METADATA = ".metadata"
_STATE = re.compile(rf"(?:.*\.)?state\.(?P<name>.+)\.(?P<kind>{'|'.join(KINDS)}|step)")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Place:
    """Bytes of one saved item: an archive of torch.save inside a file."""

    file: str
    offset: int
    size: int


class Item:
    """One saved box of a tensor. Its archive is opened when it is first read."""

    def __init__(
        self, folder: Path, place: Place, dtype: torch.dtype, shape: tuple[int, ...]
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
        try:
            self._places = {
                (index.fqn, tuple(getattr(index, "offset", None) or ())): _place(folder, info)
                for index, info in metadata.storage_data.items()
            }
            self._held: dict[str, Any] = dict(metadata.state_dict_metadata)
            self.tensors = {
                name: self._tensor(name, held)
                for name, held in self._held.items()
                if hasattr(held, "chunks")
            }
        except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
            raise UserError(
                f"{folder / METADATA}: not as torch.distributed.checkpoint writes it ({error}): "
                f"{FIX}"
            ) from None

    def _tensor(self, name: str, held: Any) -> Values:
        dtype, shape = held.properties.state[0], _sizes(held.size)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name} has no type")
        chunks = []
        for box in held.chunks:
            offsets, sizes = _sizes(box.offsets), _sizes(box.sizes)
            if not len(offsets) == len(sizes) == len(shape) or any(
                o + s > n for o, s, n in zip(offsets, sizes, shape, strict=True)
            ):
                raise ValueError(f"a piece of {name} lies outside it")
            place = self._places[name, offsets]
            chunks.append(Chunk(offsets, Item(self.folder, place, dtype, sizes)))
        return Chunks(dtype, shape, chunks)

    def value(self, name: str) -> Any:
        """The object saved under `name`, if it is there: a tensor read whole, or plain data."""
        if name in self.tensors:
            values = self.tensors[name]
            out = torch.empty(values.shape, dtype=values.dtype)
            values.read_into(out.view(-1), 0)
            return out
        place = self._places.get((name, ()))
        return None if place is None else open_item(self.folder, place).data

    def names(self) -> list[str]:
        """Everything that the folder holds, tensors and other objects."""
        return list(self._held)


def open_item(folder: Path, place: Place) -> TorchFile:
    """The archive of one saved item."""
    return TorchFile(folder / place.file, place.offset, place.size)


def open_dcp(folder: Path, model: ModelConfig | None) -> ForeignSource:
    """A folder that `dcp.save` wrote of a model's, and if it is there its optimizer's, state."""
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
        steps.see(held.value(name))
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
        return Loader(data).load()
    except Exception as error:
        # A damaged pickle raises whatever its bytes happen to call.
        raise UserError(f"{file}: refused: {explain(error)}: {FIX}") from None


def _place(folder: Path, info: Any) -> Place:
    file = info.relative_path
    if not isinstance(file, str) or not _PLAIN.fullmatch(file):
        raise UserError(
            f"{folder / METADATA}: it names the file {file!r}, outside its folder: {FIX}"
        )
    if getattr(info, "transform_descriptors", None):
        raise UserError(f"{folder / file}: compressed or encrypted: save it without extensions")
    return Place(file, *_sizes((info.offset, info.length)))


def _sizes(numbers: Any) -> tuple[int, ...]:
    found = tuple(numbers)
    if not all(type(n) is int and 0 <= n < 2**62 for n in found):
        raise ValueError(f"{found} are not sizes")
    return found
