"""Text to token ids."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from ... import UserError
from .files import read_regular

EOD_TOKENS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<eod>",
    "[EOS]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek
)
"""Names that common tokenizers give the token ending a document, by preference."""
MAX_VOCAB = 2**24
"""Ids beyond are a damaged file's: no model has such an embedding."""


class Tokenizer(Protocol):
    """What preparing a dataset needs. Ids lie in [0, vocab_size); `eod` ends every document."""

    name: str
    vocab_size: int
    eod: int
    fingerprint: str
    """SHA-256 of what defines the tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, 1-D, without `eod`, whatever the text spells. Raises UserError."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, and 256 to end a document."""

    name = "byte"
    vocab_size = 257
    eod = 256
    fingerprint = hashlib.sha256(b"utf-8 bytes 0..255, eod 256").hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Bytes of each text, 1-D uint8."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


class HFTokenizer:
    """A `tokenizer.json` of the Hugging Face `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        content = _read(path)
        self._path = path
        self.name = path.name
        self.fingerprint = hashlib.sha256(content).hexdigest()
        with self._library("is not a tokenizer.json", "give the file that `Tokenizer.save` writes"):
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
            # A saved file may hold settings that cut or pad texts; a document is kept whole.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            vocab = self._tokenizer.get_vocab(with_added_tokens=True)
            self.vocab_size = _vocab_size(path, vocab)
            self._end = _find_end(path, vocab)
            self.eod = vocab[self._end]
            # A document that spells out its end must not end early: special tokens in a text are
            # plain text to the library, and some files do not call theirs special.
            self._tokenizer.add_special_tokens([tokenizers.AddedToken(self._end)])
            self._tokenizer.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, 1-D int64; the library spreads the texts over the cores."""
        ids = self._encode(texts)
        for i, text in enumerate(texts):
            if (ids[i] == self.eod).any():
                ids[i] = self._apart(text)
        return ids

    def _apart(self, text: str) -> np.ndarray:
        """Ids of a text in which the model itself, not an added token, knows the end's name: each
        is read in two parts."""
        head, tail = self._end[:1], self._end[1:]
        cut = text.split(self._end)
        parts = [
            (tail if i else "") + part + (head if i < len(cut) - 1 else "")
            for i, part in enumerate(cut)
        ]
        ids = np.concatenate(self._encode(parts))
        if (ids == self.eod).any():
            raise UserError(
                f"data.tokenizer: {self._path} makes its end of a document, {self._end}, out "
                f"of ordinary text (`{text[:40]}`...); give it an end that its model does not know"
            )
        return ids

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        with self._library("cannot encode a document", "give one that takes any text"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]
        top = max((int(part.max()) for part in ids if part.size), default=0)
        if top >= self.vocab_size:
            raise UserError(
                f"data.tokenizer: {self._path} makes id {top}, but its vocabulary ends at "
                f"{self.vocab_size - 1}; mend its unk_id, or save the tokenizer again"
            )
        return ids

    @contextmanager
    def _library(self, what: str, fix: str) -> Iterator[None]:
        """Make the library's refusals the user's mistake."""
        try:
            yield
        except UserError:
            raise
        except BaseException as error:
            # A panic of the library's Rust code is a BaseException of a class it does not export.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UserError(f"data.tokenizer: {self._path} {what} ({error}); {fix}") from error


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer named by `data.tokenizer`: `byte` or a path. Raises UserError."""
    return ByteTokenizer() if spec == "byte" else HFTokenizer(Path(spec))


def tokenizer_fingerprint(spec: str) -> str:
    """Fingerprint of `load_tokenizer(spec)` without building it. Raises UserError."""
    if spec == "byte":
        return ByteTokenizer.fingerprint
    return hashlib.sha256(_read(Path(spec))).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise UserError(
            f"data.tokenizer: cannot read {path} ({error.strerror}); give `byte` or the path of a "
            "tokenizer.json file"
        ) from error


def _vocab_size(path: Path, vocab: dict[str, int]) -> int:
    size = max(vocab.values(), default=-1) + 1
    if size > MAX_VOCAB:
        raise UserError(
            f"data.tokenizer: {path} has {len(vocab)} tokens, but an id of {size - 1}; number its "
            f"tokens from 0, below {MAX_VOCAB}"
        )
    return size


def _find_end(path: Path, vocab: dict[str, int]) -> str:
    for token in EOD_TOKENS:
        if token in vocab:
            return token
    raise UserError(
        f"data.tokenizer: {path} has no token that ends a document; add one of "
        f"{', '.join(EOD_TOKENS[:4])} as a special token"
    )
