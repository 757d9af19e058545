"""A prepared dataset: a folder that `dataset.json` describes."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from ... import UserError
from ...moe.config import NonNegative, Positive, Section
from .files import read_regular
from .indexed import IndexedReader
from .tokenizer import MAX_VOCAB

MANIFEST = "dataset.json"
DOMAIN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""A domain's name becomes a file name."""
Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")


class TokenizerInfo(Section):
    """The tokenizer that made the ids."""

    name: str
    fingerprint: str
    vocab_size: Annotated[int, Field(gt=0, le=MAX_VOCAB)]
    eod: NonNegative

    @model_validator(mode="after")
    def _check_eod(self) -> "TokenizerInfo":
        if self.eod >= self.vocab_size:
            raise ValueError(f"eod is {self.eod}, beyond vocab_size {self.vocab_size}")
        return self


class SplitInfo(Section):
    """One split of a domain: its size, and its two files. Nothing may be held out."""

    documents: NonNegative
    tokens: NonNegative
    bin_bytes: NonNegative
    idx_bytes: Positive
    bin_sha256: str


class DomainInfo(Section):
    """One domain, and what preparing it left out."""

    train: SplitInfo
    valid: SplitInfo
    duplicates: NonNegative
    skipped: NonNegative
    divided: bool = False
    """Whether the last document was cut in two, since one split had none."""


class DatasetManifest(Section):
    """What `dataset.json` holds."""

    format_version: Literal[1] = 1
    tokenizer: TokenizerInfo
    valid_fraction: float
    domains: Annotated[dict[Annotated[str, Field(pattern=DOMAIN)], DomainInfo], Field(min_length=1)]


class Dataset:
    """The prepared dataset in the folder `path`. Raises UserError if it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        self.domains = tuple(self.manifest.domains)
        self.vocab_size = self.manifest.tokenizer.vocab_size
        self.eod = self.manifest.tokenizer.eod

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tokens of every split and the tokenizer: the same data, the same value,
        wherever it was prepared."""
        hashes = {
            name: [info.train.bin_sha256, info.valid.bin_sha256]
            for name, info in self.manifest.domains.items()
        }
        content = json.dumps([self.manifest.tokenizer.fingerprint, hashes])
        return hashlib.sha256(content.encode()).hexdigest()

    def open(self, domain: str, split: Split) -> IndexedReader:
        """The documents of one split. Raises UserError if its files are not those prepared."""
        reader = IndexedReader(self.path / f"{domain}-{split}")
        info: SplitInfo = getattr(self.manifest.domains[domain], split)
        sizes = ((reader.bin_path, info.bin_bytes), (reader.idx_path, info.idx_bytes))
        for path, expected in sizes:
            if (size := path.stat().st_size) != expected:
                raise UserError(
                    f"{path}: it has {size} bytes, but {MANIFEST} says {expected}; prepare the "
                    "dataset again or restore the file"
                )
        for what, found in (("documents", len(reader)), ("tokens", len(reader.tokens))):
            if found != getattr(info, what):
                raise UserError(
                    f"{reader.idx_path}: it counts {found} {what}, but {MANIFEST} says "
                    f"{getattr(info, what)}; prepare the dataset again or restore the file"
                )
        return reader


def _read_manifest(path: Path) -> DatasetManifest:
    file = path / MANIFEST
    try:
        return DatasetManifest.model_validate_json(read_regular(file))
    except FileNotFoundError as error:
        what = f"has no {MANIFEST}" if path.is_dir() else "is not a folder"
        raise UserError(
            f"data.path: {path} {what}; make it with `moelstrom data prepare`, or set "
            "data.corpus: python to have the default corpus prepared there"
        ) from error
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); fix its path or its permissions"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{file}: {field}: {first['msg']}; prepare the dataset again with this version"
        ) from error
