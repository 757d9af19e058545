"""One domain's text as two files of tokens: to train on, and held out."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ... import UserError
from .dataset import DomainInfo, Split, SplitInfo
from .indexed import IndexedWriter, token_dtype
from .source import Document, TextSource
from .tokenizer import Tokenizer

BATCH_CHARS = 4_000_000
"""Text encoded at once."""


class DomainWriter:
    """Writes one domain's two splits into `folder`."""

    def __init__(
        self, folder: Path, name: str, tokenizer: Tokenizer, valid_fraction: float
    ) -> None:
        self.folder = folder
        self.name = name
        self.tokenizer = tokenizer
        self.valid_fraction = valid_fraction
        self.duplicates = 0
        self._seen: set[int] = set()
        self._unfinished: IndexedWriter | None = None

    def write(self, source: TextSource, advance: Callable[[int], None]) -> DomainInfo:
        """Tokenize the whole source. Raises UserError if there is too little of it."""
        dtype = token_dtype(self.tokenizer.vocab_size)
        with (
            IndexedWriter(self._prefix("train"), dtype) as train,
            IndexedWriter(self._prefix("valid"), dtype) as valid,
        ):
            for documents in self._batches(source):
                self._add(documents, train, valid)
                advance(source.done)
            self._finish_document()
            divided = self._divide(source, train, valid)
        advance(source.total)
        return DomainInfo(
            train=self._info("train", train),
            valid=self._info("valid", valid),
            duplicates=self.duplicates,
            skipped=source.skips,
            divided=divided,
        )

    def _prefix(self, split: Split) -> Path:
        return self.folder / f"{self.name}-{split}"

    def _add(self, documents: list[Document], train: IndexedWriter, valid: IndexedWriter) -> None:
        encoded = self.tokenizer.encode_batch([document.text for document in documents])
        for document, tokens in zip(documents, encoded, strict=True):
            if document.first:
                self._finish_document()
                self._unfinished = valid if self._held_out(document) else train
            assert self._unfinished is not None
            if document.last:
                self._unfinished.add(np.append(tokens, self.tokenizer.eod))
                self._unfinished = None
            else:
                self._unfinished.add(tokens, last=False)

    def _finish_document(self) -> None:
        """End a document whose last piece could not be read."""
        if self._unfinished is not None:
            self._unfinished.add(np.array([self.tokenizer.eod]))
            self._unfinished = None

    def _batches(self, source: TextSource) -> Iterator[list[Document]]:
        batch: list[Document] = []
        size = 0
        for document in self._unique(source):
            batch.append(document)
            size += len(document.text)
            if size >= BATCH_CHARS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _unique(self, source: TextSource) -> Iterator[Document]:
        """Without blank documents and duplicates; one too long to hold is not compared."""
        for document in source:
            if document.first and document.last:
                if not document.text.strip():
                    continue
                digest = _hash(document.text)
                if digest in self._seen:
                    self.duplicates += 1
                    continue
                self._seen.add(digest)
            yield document

    def _held_out(self, document: Document) -> bool:
        return _hash(document.group or document.text) < self.valid_fraction * 2**64

    def _divide(self, source: TextSource, train: IndexedWriter, valid: IndexedWriter) -> bool:
        """Give an empty split the end of the other's last document; whether it was empty.

        Few documents, or a single one, all fall on one side.
        """
        if not train.documents and not valid.documents:
            skipped = f" (skipped {source.skips}: {source.reasons()})" if source.skips else ""
            raise UserError(
                f"domain {self.name}: no text found{skipped}; give UTF-8 text, or JSON records "
                "with a field `text`"
            )
        if train.documents and (valid.documents or not self.valid_fraction):
            return False
        share = self.valid_fraction if train.documents else 1 - self.valid_fraction
        giver, taker = (train, valid) if train.documents else (valid, train)
        length = giver.last_length
        # Not more than half of one document of many; each side keeps a token and an end.
        count = min(round(giver.tokens * share), round(length * max(share, 0.5)), length - 1)
        if length < 3:
            raise UserError(
                f"domain {self.name}: nothing can be held out of {giver.documents} documents, "
                f"the last of {length} tokens; add text, or set valid_fraction to 0"
            )
        giver.move_tail(max(count, 2), self.tokenizer.eod, taker)
        return True

    def _info(self, split: Split, writer: IndexedWriter) -> SplitInfo:
        prefix = self._prefix(split)
        return SplitInfo(
            documents=writer.documents,
            tokens=writer.tokens,
            bin_bytes=Path(f"{prefix}.bin").stat().st_size,
            idx_bytes=Path(f"{prefix}.idx").stat().st_size,
            bin_sha256=writer.sha256,
        )


def _hash(text: str) -> int:
    """64 bits of the text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
