"""Make a dataset folder from text."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ... import UserError
from .config import DataConfig
from .corpus import Document, Source, folder_source, python_sources
from .dataset import MANIFEST, Dataset, DomainInfo, Manifest, SplitInfo, TokenizerInfo
from .indexed import IndexedWriter, fsync_folder, token_dtype
from .tokenizer import Tokenizer, load_tokenizer, tokenizer_fingerprint

VALID_FRACTION = 0.02
BATCH_BYTES = 4_000_000
"""Source text encoded at once."""


def prepare(
    out: Path,
    domains: Mapping[str, Path],
    tokenizer: Tokenizer,
    *,
    valid_fraction: float = VALID_FRACTION,
    progress: bool = True,
) -> Dataset:
    """Tokenize the text folder of each domain into the new dataset folder `out`.

    Documents are held out by a hash of their text, and duplicates within a domain are dropped, so
    no held-out document is trained on. `progress` shows a bar on stderr. The folder appears whole
    or not at all. Raises UserError for an existing `out` and for domains without usable text.
    """
    _check_arguments(domains, valid_fraction)
    taken = UserError(f"{out}: a dataset is there already; choose another folder or delete it")
    if _holds_dataset(out):
        raise taken
    sources = {name: folder_source(name, Path(path)) for name, path in domains.items()}
    if not _build(out, sources, tokenizer, valid_fraction, progress):
        raise taken
    return Dataset(out)


def ensure_default(path: Path, tokenizer: Tokenizer, *, progress: bool = False) -> Dataset:
    """The dataset at `path`, made from the default corpus if nothing is there yet.

    Several processes may call this at once: the first to finish provides the folder, and the
    others use it. Raises UserError.
    """
    if not _holds_dataset(path):
        _build(path, python_sources(), tokenizer, VALID_FRACTION, progress)
    return Dataset(path)


def load_dataset(config: DataConfig) -> Dataset:
    """The dataset of a run, made if `config.corpus` says so. Raises UserError if another tokenizer
    made it."""
    path = Path(config.path)
    if config.corpus == "python":
        dataset = ensure_default(path, load_tokenizer(config.tokenizer))
    else:
        dataset = Dataset(path)
    made = dataset.manifest.tokenizer
    if tokenizer_fingerprint(config.tokenizer) != made.fingerprint:
        raise UserError(
            f"data.tokenizer: {config.tokenizer} did not make the dataset {path}, {made.name} "
            f"with fingerprint {made.fingerprint[:12]} did; set data.tokenizer to that one, or "
            "prepare another dataset"
        )
    return dataset


def _check_arguments(domains: Mapping[str, Path], valid_fraction: float) -> None:
    if not 0 < valid_fraction < 1:
        raise UserError(f"valid_fraction: {valid_fraction} is not between 0 and 1; try 0.02")
    if not domains:
        raise UserError("domains: none given; name at least one, as name=folder")
    for name in domains:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(
                f"domain {name!r}: its name becomes a file name; use letters, digits, `_`, `-`, `.`"
            )


def _holds_dataset(out: Path) -> bool:
    """Whether a dataset is at `out`; UserError if anything else is."""
    # Looked at in this order: another process may publish its dataset in between.
    occupied = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if (out / MANIFEST).exists():
        return True
    if occupied:
        raise UserError(f"{out}: it exists and is no empty folder; choose another one")
    return False


def _build(
    out: Path,
    sources: Mapping[str, Source],
    tokenizer: Tokenizer,
    valid_fraction: float,
    progress: bool,
) -> bool:
    """Build beside `out` and rename; False if another process was first."""
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        infos = _write_domains(temporary, sources, tokenizer, valid_fraction, progress)
        _write_manifest(temporary, tokenizer, valid_fraction, infos)
        return _publish(temporary, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot write the dataset ({error.strerror}); free space or fix permissions"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, out: Path) -> bool:
    try:
        temporary.rename(out)  # replaces nothing but an empty folder
    except OSError:
        if (out / MANIFEST).exists():
            return False
        raise
    fsync_folder(out.parent)
    return True


def _write_manifest(
    folder: Path, tokenizer: Tokenizer, valid_fraction: float, domains: dict[str, DomainInfo]
) -> None:
    made = TokenizerInfo(
        name=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
    )
    manifest = Manifest(tokenizer=made, valid_fraction=valid_fraction, domains=domains)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(folder)


def _write_domains(
    folder: Path,
    sources: Mapping[str, Source],
    tokenizer: Tokenizer,
    valid_fraction: float,
    progress: bool,
) -> dict[str, DomainInfo]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    infos = {}
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not progress) as bars:
        for name, source in sources.items():
            task = bars.add_task(f"{name}: tokenizing", total=source.total)

            def advance(done: int, task: TaskID = task) -> None:
                bars.update(task, completed=done)

            domain = _Domain(folder, name, tokenizer, valid_fraction)
            infos[name] = domain.write(source, advance)
            if source.skipped and progress:
                reasons = "; ".join(source.reasons)
                bars.console.print(f"{name}: skipped {source.skipped}: {reasons}", markup=False)
    return infos


class _Domain:
    """Writes one domain's two splits."""

    def __init__(
        self, folder: Path, name: str, tokenizer: Tokenizer, valid_fraction: float
    ) -> None:
        self.folder = folder
        self.name = name
        self.tokenizer = tokenizer
        self.valid_fraction = valid_fraction
        self.seen: set[int] = set()
        self.duplicates = 0

    def write(self, source: Source, advance: Callable[[int], None]) -> DomainInfo:
        dtype = token_dtype(self.tokenizer.vocab_size)
        with (
            IndexedWriter(self.folder / f"{self.name}-train", dtype) as train,
            IndexedWriter(self.folder / f"{self.name}-valid", dtype) as valid,
        ):
            for documents in self._batches(source):
                ids = self.tokenizer.encode_batch([document.text for document in documents])
                for document, tokens in zip(documents, ids, strict=True):
                    writer = valid if self._held_out(document) else train
                    writer.add(np.append(tokens, self.tokenizer.eod))
                advance(source.done)
            self._check(source, train.documents, valid.documents)
        advance(source.total)
        return DomainInfo(
            train=self._info("train", train),
            valid=self._info("valid", valid),
            duplicates=self.duplicates,
            skipped=source.skipped,
        )

    def _batches(self, source: Source) -> Iterator[list[Document]]:
        batch: list[Document] = []
        size = 0
        for document in self._unique(source):
            batch.append(document)
            size += len(document.text)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _unique(self, source: Source) -> Iterator[Document]:
        for document in source:
            if not document.text.strip():
                continue
            digest = _hash(document.text)
            if digest in self.seen:
                self.duplicates += 1
                continue
            self.seen.add(digest)
            yield document

    def _held_out(self, document: Document) -> bool:
        return _hash(document.group or document.text) < self.valid_fraction * 2**64

    def _check(self, source: Source, train: int, valid: int) -> None:
        count = train + valid
        if not count:
            skipped = f" (skipped {source.skipped}: {source.reasons[0]})" if source.skipped else ""
            raise UserError(
                f"domain {self.name}: no text found{skipped}; give UTF-8 text files, or .jsonl "
                "files with a field `text`"
            )
        if not valid or not train:
            empty, fix = ("valid", "raise") if not valid else ("train", "lower")
            raise UserError(
                f"domain {self.name}: the {empty} split is empty: valid_fraction "
                f"{self.valid_fraction} of {count} documents; {fix} it, or add documents"
            )

    def _info(self, split: str, writer: IndexedWriter) -> SplitInfo:
        stem = self.folder / f"{self.name}-{split}"
        return SplitInfo(
            documents=writer.documents,
            tokens=writer.tokens,
            bin_bytes=Path(f"{stem}.bin").stat().st_size,
            idx_bytes=Path(f"{stem}.idx").stat().st_size,
            bin_sha256=writer.sha256,
        )


def _hash(text: str) -> int:
    """64 bits of the text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
