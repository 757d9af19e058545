"""Records of JSON: a document is the string in a field of each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..source import Document, Skip, pieces

FIELD = "text"
MAX_RECORD = 2**26
"""Bytes of a record that is read; a longer one is left out."""


def read_lines(opened: BinaryIO, path: Path, skip: Skip) -> Iterator[Document]:
    """A record on each line. Blank lines are passed over."""
    for number, line in _lines(opened):
        if line is None:
            skip(f"{path}:{number}", f"longer than {MAX_RECORD >> 20} MiB")
        elif line.strip():
            yield from _document(parse(line), f"{path}:{number}", skip)


def read_object(opened: BinaryIO, path: Path, skip: Skip) -> Iterator[Document]:
    """The whole file as one record, over as many lines as it takes."""
    yield from _document(parse(opened.read(MAX_RECORD)), str(path), skip)


def parse(data: bytes) -> Any:
    """What the JSON says; None, which no record is, if it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _document(record: Any, where: str, skip: Skip) -> Iterator[Document]:
    if not isinstance(record, dict):
        skip(where, "no JSON object")
    elif not isinstance(record.get(FIELD), str):
        skip(where, f"no string in its field `{FIELD}`")
    else:
        yield from pieces(record[FIELD])


def _lines(opened: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines by number from 1; None for one too long to hold."""
    number = 0
    while line := opened.readline(MAX_RECORD):
        number += 1
        if line.endswith(b"\n") or len(line) < MAX_RECORD:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = opened.readline(MAX_RECORD)
        yield number, None
