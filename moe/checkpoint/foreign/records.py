"""JSON that a foreign checkpoint carries, as a tree of bounded size."""

import math
from typing import Any

MAX_VALUES = 10**6
MAX_DEPTH = 64


def plain(value: Any) -> Any:
    """A copy of `value` made of JSON's types alone; tuples become lists.

    Raises ValueError for anything else in it, for numbers that JSON lacks, and for more values than
    any record has: what a pickle shares a million times would be written a million times.
    """
    return _Copy().of(value, MAX_DEPTH)


class _Copy:
    def __init__(self) -> None:
        self._left = MAX_VALUES

    def of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth < 0:
            raise ValueError("a record is larger or deeper than any run's")
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("a record has keys that are no names")
            return {key: self.of(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item, depth - 1) for item in value]
        if value is None or isinstance(value, str | bool) or _is_number(value):
            return value
        raise ValueError(f"a record holds a {type(value).__name__}, or a number out of range")


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and -(2**63) <= value < 2**64
