"""Text to token ids."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from ... import UserError

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


class Tokenizer(Protocol):
    """What preparing a dataset needs. Ids lie in [0, vocab_size); `eod` ends every document."""

    name: str
    vocab_size: int
    eod: int
    fingerprint: str
    """SHA-256 of what defines the tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, 1-D, without `eod`."""
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
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises a bare Exception
            raise UserError(
                f"data.tokenizer: {path} is not a tokenizer.json ({error}); give the file that "
                "`Tokenizer.save` of the tokenizers library writes"
            ) from error
        # A saved file may hold settings that cut or pad texts; a document is kept whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A document that spells out a special token must not end early.
        self._tokenizer.encode_special_tokens = True
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.name = path.name
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.eod = _find_eod(path, vocab)
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, 1-D int64; the library spreads the texts over the cores."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]


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
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"data.tokenizer: cannot read {path} ({error.strerror}); give `byte` or the path of a "
            "tokenizer.json file"
        ) from error


def _find_eod(path: Path, vocab: dict[str, int]) -> int:
    for token in EOD_TOKENS:
        if token in vocab:
            return vocab[token]
    raise UserError(
        f"data.tokenizer: {path} has no token that ends a document; add one of "
        f"{', '.join(EOD_TOKENS[:4])} as a special token"
    )
