"""Files as nobody wrote them: bytes changed at random, and JSON whose values are of other kinds."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 8, 10**6, 2**40, 10**30, -(10**30)),
    *(0.5, 1e-7, 3e-4, 1e8, 1e13, -0.0, 1e308, -1e308, 5e-324),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "1",
        "nan",
        "world",
        "node",
        "\ud800",
        "\x00\x1b[2J",
        "x" * 5000,
    ),
    *([], {}, [[]], [0], [1, 1], [-1], [None], {"a": 1}, [{"rank": 0}], [1.5, "x"]),
)
TEXTS = (b"", b"\x00", b"\xff\xfe", b"[" * 3000, b'{"a":' * 3000, b"1e999", b"NaN", b"-", b"\n")


def of_bytes(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` versions of `data`, each with one to three cuts, repetitions, or changed bytes."""
    draw = random.Random(seed)
    for _ in range(count):
        found = data
        for _ in range(draw.randint(1, 3)):
            found = _changed(found, draw)
        yield found


def _changed(data: bytes, draw: random.Random) -> bytes:
    low, high = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    if draw.random() < 0.5:
        # Most of a file stays as it is, or nothing but its first check would be met.
        high = min(high, low + draw.randint(0, 8))
    return draw.choice(
        (
            lambda: data[:low] + data[high:],
            lambda: data[:low],
            lambda: data[:high] + data[low:],
            lambda: data[:low] + draw.choice(TEXTS) + data[high:],
            lambda: (
                data[:low] + bytes(b ^ 1 << draw.randrange(8) for b in data[low:high]) + data[high:]
            ),
            lambda: data[:low] + b"%d" % draw.randint(-9, 10**9) + data[high:],
        )
    )()


def of_json(value: Any, count: int, seed: int) -> Iterator[bytes]:
    """`count` versions of a JSON value, each with one to three places changed: strange values, a
    key or an item that is gone, doubled or in another's place."""
    draw = random.Random(seed)
    for _ in range(count):
        found = copy.deepcopy(value)
        for _ in range(draw.randint(1, 3)):
            found = _replaced(found, draw)
        yield json.dumps(found).encode()


def _replaced(value: Any, draw: random.Random) -> Any:
    """One place changed: on the way down any level may be it, deeper ones more often."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.02:
        alike = [v for v in STRANGE if type(v) is type(value)] if draw.random() < 0.7 else []
        return copy.deepcopy(draw.choice(alike or STRANGE))
    keys: list[Any] = [*value] if isinstance(value, dict) else [*range(len(value))]
    key, other = draw.choice(keys), draw.choice(keys)
    kind = draw.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.15:
        value[key] = copy.deepcopy(value[other])
    elif kind < 0.2 and isinstance(value, list):
        value.insert(key, copy.deepcopy(value[other]))
    else:
        value[key] = _replaced(value[key], draw)
    return value
