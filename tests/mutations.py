"""Random damage: to bytes, to values of JSON, to a pickle inside torch.save's archive, to a
safetensors header."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

NUMBERS = [0, 1, -1, 7, 2**31, 2**40, 2**53, 2**62, 2**64, 10**30, 0.5, -0.0, 1e308]
TEXTS = ["", "x", "float32", "F32", "\x00", "a\nb", "\ud800", "e" * 5000, "../x", "default", "silu"]
VALUES: list[Any] = [*NUMBERS, *TEXTS, None, True, [], {}, [[]], [1] * 20, {"a": {}}, [2**62] * 70]
TOKENS = [b"{", b"}", b"[", b"]", b",", b'"', b"NaN", b"1e999", b"9" * 400, b"\xff", b"[" * 3000]
TOKENS += [
    b"h\x00",
    b"\x85",
    b"\x86",
    b"R",
    b"b",
    b"0",
    b"2",
    b"(",
    b"t",
    b"u",
    b"s",
    b"\x8f",
    b"Q",
]
TOKENS += [b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"G\x7f\xf0" + bytes(6), b"J\xff\xff\xff\x7f", b"N"]
TOKENS += [b"\x81", b"\x93", b"]", b"}", b"e", b"a", b"ctorch\nqint8\n", b"cmegatron\nX\n", b"."]


def spoil_bytes(rng: random.Random, text: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    spoilt = bytearray(text)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(spoilt) + 1)
        span = min(rng.choice([1, 2, 8, 40, 400]), len(spoilt) - at)
        kind = rng.randrange(6)
        if kind == 0:
            spoilt[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            spoilt[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"])
        elif kind == 2:
            del spoilt[at : at + span]
        elif kind == 3:
            spoilt[at:at] = spoilt[at : at + span]
        elif kind == 4 or rng.random() < 0.8:
            spoilt[at:at] = rng.choice(TOKENS)
        else:
            del spoilt[at:]
    return bytes(spoilt)


def spoil_json(rng: random.Random, text: bytes) -> bytes:
    """A value somewhere in it replaced, dropped or renamed."""
    if rng.random() < 0.3:
        return spoil_bytes(rng, text)
    whole = json.loads(text)
    place = whole
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            place = inner
        else:
            break
    if isinstance(place, dict) and rng.random() < 0.2:
        place[rng.choice(TEXTS)] = place.pop(key)
    else:
        place[key] = rng.choice(VALUES)
    return json.dumps(whole).encode()


def spoil_pickle(rng: random.Random, text: bytes) -> bytes:
    """The pickle in an archive of torch.save, which stays a good archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(text)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(
                info.filename,
                spoil_bytes(rng, data) if info.filename.endswith("data.pkl") else data,
            )
    return out.getvalue()


def spoil_directory(rng: random.Random, text: bytes) -> bytes:
    """The end of a zip archive, where its directory is."""
    cut = max(len(text) - rng.choice([30, 100, 400]), 0)
    return text[:cut] + spoil_bytes(rng, text[cut:])


def spoil_header(rng: random.Random, text: bytes) -> bytes:
    """The header of a safetensors file, with its length made to fit."""
    size = int.from_bytes(text[:8], "little")
    header = spoil_json(rng, text[8 : 8 + size])
    length = (
        len(header) if rng.random() < 0.9 else rng.choice([0, 2**40, 2**64 - 1, len(header) + 9])
    )
    return length.to_bytes(8, "little") + header + text[8 + size :]


Spoiler = Callable[[random.Random, bytes], bytes]
