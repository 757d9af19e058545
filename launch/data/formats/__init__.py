"""How the documents of a file are told from each other, by what the file holds.

A reader of one format is a function of the open file, its path and a callback for what it leaves
out; it yields documents.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, cast, get_args

from .... import UserError
from ..source import Document, Read, Skip
from .records import read_lines, read_object
from .sniff import UnclearError, kind
from .text import read_text

Format = Literal["auto", "text", "jsonl"]
"""`auto` tells by content; the others are the user's word for it."""
READERS: dict[str, Read] = {"text": read_text, "jsonl": read_lines, "json": read_object}


def named(name: str) -> Format:
    """The format of that name. Raises UserError."""
    if name not in get_args(Format):
        raise UserError(f"--format {name}: is none of {', '.join(get_args(Format))}; give one")
    return cast(Format, name)


def reader(form: Format) -> Read:
    """The reader of files that are all of one format, or each of its own."""
    return functools.partial(_read, form)


def _read(form: Format, opened: BinaryIO, path: Path, skip: Skip) -> Iterator[Document]:
    try:
        found = kind(opened, path) if form == "auto" else form
    except UnclearError as error:
        skip(str(path), str(error))
        return
    opened.seek(0)
    yield from READERS[found](opened, path, skip)
