"""Plain text: a file is one document."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..source import PIECE, Document, Skip, cut

BLOCK = 2**20


def read_text(opened: BinaryIO, path: Path, skip: Skip) -> Iterator[Document]:
    """One document of UTF-8, in pieces if it is long. A NUL byte makes the file a binary one.

    Raises UnicodeDecodeError.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held, first = "", True
    while True:
        block = opened.read(BLOCK)
        if b"\0" in block:
            skip(str(path), "a binary file")
            return
        held += decoder.decode(block, final=not block)
        if not block:
            yield Document(held, first=first)
            return
        while len(held) > 2 * PIECE:
            end = cut(held, PIECE)
            yield Document(held[:end], first=first, last=False)
            held, first = held[end:], False
