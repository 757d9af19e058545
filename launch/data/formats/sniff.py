"""What a file holds, told by its content; its name decides only what the content leaves open."""

import json
import re
from pathlib import Path
from typing import BinaryIO

from .records import FIELD, MAX_RECORD, parse

RECORD_NAMES = (".jsonl", ".ndjson", ".jsonlines")
OBJECT = re.compile(rb'\{\s*("(?:[^"\\]|\\.)*"\s*:|\})')
"""How a JSON object starts, and hardly anything else does."""
ARRAY = re.compile(rb'\[\s*\{\s*("(?:[^"\\]|\\.)*"\s*:|\})')
HEAD = 2**16
BOM = b"\xef\xbb\xbf"
ASK = "name it .jsonl, or give --format text or jsonl"


class UnclearError(Exception):
    """A file that may be one thing or another: it is refused, for a wrong guess would be silent."""


def kind(opened: BinaryIO, path: Path) -> str:
    """Name of the file's format. Raises UnclearError."""
    named = path.suffix.lower() in RECORD_NAMES
    head = opened.read(HEAD).removeprefix(BOM).lstrip()
    if named:
        return "jsonl"
    if ARRAY.match(head):
        raise UnclearError(
            "a JSON array of objects; write one object a line (jq -c '.[]'), or give --format text"
        )
    if not OBJECT.match(head):
        return "text"
    opened.seek(0)
    first, second = _line(opened), _line(opened)
    if isinstance(parse(second), dict):
        return "jsonl"
    record = parse(first)
    if isinstance(record, dict):
        return _one_line(record, second)
    opened.seek(0)
    return _many_lines(opened.read(MAX_RECORD))


def _one_line(record: dict, second: bytes) -> str:
    if second:
        raise UnclearError(f"its first line is a JSON object, but its second is none; {ASK}")
    if isinstance(record.get(FIELD), str):
        return "jsonl"
    raise UnclearError(f"one JSON object without a string in its field `{FIELD}`; {ASK}")


def _many_lines(data: bytes) -> str:
    """A file whose first line begins a JSON object, and may not end it."""
    try:
        text = data.decode("utf-8-sig").strip()
        record, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        if len(data) == MAX_RECORD:
            raise UnclearError(
                f"it starts like a JSON object and is too long to tell; {ASK}"
            ) from None
        return "text"
    if text[end:].lstrip().startswith("{"):
        raise UnclearError("several JSON objects, but not one a line; write it so with jq -c .")
    if end < len(text):
        return "text"
    return "json" if isinstance(record.get(FIELD), str) else _one_line(record, b"")


def _line(opened: BinaryIO) -> bytes:
    """The next line that is not blank, at most MAX_RECORD bytes of it."""
    while line := opened.readline(MAX_RECORD):
        if line.strip():
            return line
    return b""
