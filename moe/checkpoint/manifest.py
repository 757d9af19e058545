"""The manifest: which file holds which elements of which logical tensor, and their SHA-256.

It knows nothing about the layout of the run that wrote it: each piece says which elements of the
flattened logical tensor it holds, so that any reader can assemble any range.
"""

import hashlib
import json
import math
import reprlib
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ... import UserError
from ..state.source import Slab
from .cover import check_cover

FORMAT = "moelstrom-checkpoint"
VERSION: Literal[2] = 2
"""1 had plain ranges only; both are read."""
FIX = "resume from an older checkpoint, or restore this file from a copy"

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_BYTES = 2**62
Count = Annotated[int, Field(ge=0, le=MAX_BYTES)]
Name = Annotated[str, Field(min_length=1, max_length=1024)]
# A bare name: no separators and no leading dot, so a file can never lie outside its folder.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.safetensors$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Piece(_Strict):
    """Elements of a flattened logical tensor, 1-D under `key` in `file`: [offset, offset + numel),
    or `rows` equal runs, each one's start `stride` behind the last one's (see `source.Slab`)."""

    file: FileName
    key: Name
    offset: Count
    numel: Annotated[int, Field(ge=1, le=MAX_BYTES)]
    sha256: Sha256
    """Of the raw little-endian bytes."""
    rows: Annotated[int, Field(ge=1, le=MAX_BYTES)] = 1
    stride: Count = 0

    @property
    def run(self) -> int:
        """Consecutive elements of a row."""
        return self.numel // self.rows

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.offset + (self.rows - 1) * self.stride + self.run

    def slab(self, name: str) -> Slab:
        """The same elements, of the logical tensor `name`."""
        return Slab(name, self.offset, self.run, self.rows, self.stride)

    @model_validator(mode="after")
    def _check(self) -> "Piece":
        if self.numel % self.rows:
            raise ValueError(f"{self.numel} elements make no {self.rows} equal rows")
        if self.rows == 1 and self.stride:
            raise ValueError(f"one row has no stride, but it is {self.stride}")
        if self.rows > 1 and self.stride < self.run:
            raise ValueError(f"stride {self.stride} is below the run of {self.run} elements")
        return self


class TensorEntry(_Strict):
    """One logical tensor; `pieces` ascend and hold every element exactly once."""

    dtype: str
    shape: Annotated[list[Count], Field(max_length=16)]
    pieces: list[Piece]
    sha256: Sha256 | None = None
    """Of all its raw bytes in logical order, where the writer knew them."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @cached_property
    def plain(self) -> bool:
        """Whether every piece is one range."""
        return all(piece.rows == 1 for piece in self.pieces)

    @property
    def logical_sha256(self) -> str | None:
        """The same for every layout: of all bytes in logical order. None: not known."""
        whole = len(self.pieces) == 1 and self.pieces[0].rows == 1
        return self.pieces[0].sha256 if whole else self.sha256

    @model_validator(mode="after")
    def _check(self) -> "TensorEntry":
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.numel * self.itemsize > MAX_BYTES:
            raise ValueError(f"shape {self.shape} is too large to be real")
        self.pieces.sort(key=lambda piece: piece.offset)
        check_cover(self.pieces, self.numel)
        if self.sha256 not in (None, self.logical_sha256):
            raise ValueError("its SHA-256 is not that of its only piece")
        return self


class Manifest(_Strict):
    """Everything a checkpoint holds."""

    format: Literal["moelstrom-checkpoint"] = "moelstrom-checkpoint"
    version: Literal[1, 2] = VERSION
    step: Count
    meta: dict[str, Any]
    files: dict[FileName, Count]
    """Size of each file in bytes."""
    tensors: dict[Name, TensorEntry]

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        held = dict.fromkeys(self.files, 0)
        seen: set[tuple[str, str]] = set()
        for name, tensor in self.tensors.items():
            for piece in tensor.pieces:
                _check_piece(name, piece, held, seen)
                held[piece.file] += piece.numel * tensor.itemsize
        for file, size in self.files.items():
            if held[file] > size:
                raise ValueError(f"pieces of {held[file]} bytes do not fit in {file}: {size} bytes")
        return self


def _check_piece(
    name: str, piece: Piece, files: dict[str, int], seen: set[tuple[str, str]]
) -> None:
    if piece.file not in files:
        raise ValueError(f"tensor {name!r} lies in {piece.file}, which `files` does not list")
    if (piece.file, piece.key) in seen:
        raise ValueError(f"two pieces share key {piece.key!r} of {piece.file}")
    seen.add((piece.file, piece.key))


def digest(data: torch.Tensor) -> str:
    """SHA-256 (hex) of a contiguous 1-D CPU tensor's raw bytes."""
    return hashlib.sha256(data.view(torch.uint8).numpy().data).hexdigest()


def dump(manifest: Manifest) -> bytes:
    """The manifest as JSON bytes; what plain pieces leave out is left out."""
    data = {"format": manifest.format, "version": manifest.version}
    data |= manifest.model_dump(exclude_defaults=True)
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


def parse(text: bytes, source: str) -> Manifest:
    """Read and check a manifest; `source` names its file in errors.

    Raises UserError for anything that is not a valid manifest of this version.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not a valid manifest ({error}): {FIX}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{source}: not a manifest of a {FORMAT}: {FIX}")
    if data.get("version") not in (1, VERSION):
        raise UserError(
            f"{source}: version {reprlib.repr(data.get('version'))}, but this moelstrom "
            f"reads versions 1 and {VERSION}: use the moelstrom that wrote it"
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}: {FIX}") from None


def explain(error: ValidationError) -> str:
    """The first problem as one line: field, reason, value."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] not in ("value_error", "missing"):
        reason = f"{reason}, not {reprlib.repr(first['input'])}"
    # A hostile name may be long, or hold line breaks.
    text = " ".join(f"{where}: {reason}".split() if where else reason.split())
    return text if len(text) <= 500 else f"{text[:500]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {reprlib.repr(twice)} appears twice")
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
