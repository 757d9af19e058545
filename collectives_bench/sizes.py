"""Byte counts as people write them: `64KiB`, `1.5 GiB`, `8MB`, or a number."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}ib": 2 ** (10 * i) for i, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}b": 10 ** (3 * i) for i, letter in enumerate("kmgt", 1)}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """The number of bytes in `text`; ValueError says what would fit."""
    found = _FORM.fullmatch(text)
    if not found or found[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is no size: give bytes, or such as 64KiB, 8MiB, 1GiB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def label(count: float) -> str:
    """`count` bytes in the largest binary unit that leaves 1 or more: `64 KiB`, `1.5 GiB`."""
    for letter in "TGMK":
        unit = 2 ** (10 * ("KMGT".index(letter) + 1))
        if count >= unit:
            return f"{count / unit:.4g} {letter}iB"
    return f"{count:.4g} B"


Bytes = Annotated[
    int, BeforeValidator(lambda v: parse_bytes(v) if isinstance(v, str) else v), Field(ge=1)
]
"""A positive number of bytes, also from text."""
