"""One logical tensor read once, in logical order, and everything about it hashed on the way.

A slab's elements ascend, so one pass feeds the source's pieces, the target's parts and the whole
tensor in the order in which each is hashed. Slabs that are the same are hashed once.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .... import UserError
from ...state.source import Slab, Source
from ..manifest import FIX, Piece
from ..reader import Reader
from ..strides import below, gather, word_type, words

Emit = Callable[[Slab, int, np.ndarray], None]
"""Takes a part, how many of its elements came before, and the next ones."""


class TensorPass:
    """The tensor `name` of `source`, to be cut into `parts`.

    `logical_sha256` and `sha256` of a part are there after `run`.
    """

    def __init__(self, source: Source, name: str, parts: Sequence[Slab] = ()) -> None:
        self._source, self._name, self._parts = source, name, parts
        info = source.tensors[name]
        self._numel = math.prod(info.shape)
        self._word = word_type(info.dtype.itemsize)
        self._whole = Slab(name, 0, self._numel)
        self._entry = source.entry(name) if isinstance(source, Reader) else None
        pieces: list[Piece] = self._entry.pieces if self._entry else []
        self._pieces = {piece.slab(name): piece for piece in pieces}
        self._known = self._entry.logical_sha256 if self._entry else None
        self._hashes: dict[Slab, Any] = {slab: hashlib.sha256() for slab in self._hashed()}
        self._from_pieces = self._pieces.keys() & self._hashes.keys()

    def _hashed(self) -> set[Slab]:
        """What to hash. The data is verified by its pieces, or, where that is less work, as a
        whole."""
        wanted = set(self._parts)
        if self._known is None:
            return wanted | self._pieces.keys() | {self._whole}
        shared = wanted & self._pieces.keys()
        if self._whole in wanted or not shared:
            return wanted | {self._whole}
        return wanted | self._pieces.keys()

    @property
    def logical_sha256(self) -> str:
        """Of all bytes in logical order: the same in every layout."""
        found = self._hashes.get(self._whole)
        return found.hexdigest() if found else self._known or ""

    def sha256(self, part: Slab) -> str:
        """Of a part's bytes in its own order."""
        return self._hashes[part].hexdigest()

    def run(self, buffer: memoryview, emit: Emit | None = None) -> None:
        """Read all of it through `buffer`, then check what the source says of it.

        Raises UserError for damage; what was emitted by then is of no use.
        """
        space = np.frombuffer(buffer, self._word)
        for first in range(0, self._numel, len(space)):
            chunk = space[: self._numel - first]
            self._read(first, chunk)
            if self._whole in self._hashes and self._whole not in self._from_pieces:
                self._hashes[self._whole].update(chunk)
            if emit:
                self._cut(first, chunk, emit)
        self._verify()

    def _read(self, first: int, chunk: np.ndarray) -> None:
        if not isinstance(self._source, Reader):
            chunk[:] = words(self._source.read(self._name, first, len(chunk)))
            return
        for piece, data in self._source.read_into(self._name, first, chunk):
            slab = piece.slab(self._name)
            if slab in self._from_pieces:
                self._hashes[slab].update(data)

    def _cut(self, first: int, chunk: np.ndarray, emit: Emit) -> None:
        for part in self._parts:
            begin, end = below(part, first), below(part, first + len(chunk))
            if begin == end:
                continue
            if part.rows == 1:
                at = part.offset + begin - first
                data = chunk[at : at + end - begin]
            else:
                data = np.empty(end - begin, self._word)
                gather(part, first, chunk, data)
            emit(part, begin, data)
            if part not in self._from_pieces and part != self._whole:
                self._hashes[part].update(data)

    def _verify(self) -> None:
        if self._entry is None or not isinstance(self._source, Reader):
            return
        for slab in self._from_pieces:
            if self._hashes[slab].hexdigest() != self._pieces[slab].sha256:
                raise self._source.damage(self._name, self._pieces[slab])
        if self._known not in (None, self.logical_sha256):
            self._source.check(self._name)
            raise UserError(
                f"{self._source.folder}: {self._name!r} is not what its SHA-256 in the manifest "
                f"says, though its pieces are: {FIX}"
            )
