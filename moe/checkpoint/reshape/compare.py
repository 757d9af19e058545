"""Two checkpoints of any layouts and formats, tensor by tensor."""

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from ...state.source import Source
from .output import Progress
from .plan import LARGEST, dtype_name, state_bytes, tensor_bytes
from .tensorpass import TensorPass


@dataclass(frozen=True)
class Difference:
    """`what` differs at `name`; `max_abs` is the largest difference of two elements, `count` how
    many differ (None where they cannot be compared)."""

    name: str
    what: str
    max_abs: float | None = None
    count: int | None = None


def logical_hash(source: Source, name: str, chunk: int = LARGEST) -> str:
    """SHA-256 of the whole logical tensor's bytes: the same in every layout.

    Reads, and so verifies, all of it. Raises UserError on damage.
    """
    one = TensorPass(source, name)
    one.run(memoryview(bytearray(chunk)))
    return one.logical_sha256


def hashes(source: Source, readers: int, progress: Progress | None = None) -> dict[str, str]:
    """`logical_hash` of every tensor; `progress` takes bytes."""
    total = state_bytes(source)
    done, found = 0, {}
    with ThreadPoolExecutor(readers) as pool:
        results = pool.map(lambda name: logical_hash(source, name), source.tensors)
        for name, sha256 in zip(source.tensors, results, strict=True):
            found[name] = sha256
            done += tensor_bytes(source.tensors[name])
            if progress:
                progress(done, total)
    return found


def state_hash(source: Source, by_tensor: dict[str, str]) -> str:
    """One SHA-256 of every tensor's name, kind and logical hash: two equal states have the same."""
    lines = (f"{name} {_kind(source, name)} {by_tensor[name]}\n" for name in sorted(by_tensor))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def differences(
    a: Source, b: Source, readers: int, progress: Progress | None = None
) -> list[Difference]:
    """What `b` holds otherwise than `a`; empty for equal states. Reads all of both.

    Raises UserError on damage.
    """
    half = state_bytes(a)
    total = half + state_bytes(b)

    def second(done: int, _: int) -> None:
        if progress:
            progress(half + done, total)

    ours = hashes(a, readers, progress and (lambda done, _: progress(done, total)))
    theirs = hashes(b, readers, second)
    return [*_meta(a, b), *_tensors(a, b, ours, theirs)]


def _meta(a: Source, b: Source) -> Iterator[Difference]:
    if a.step != b.step:
        yield Difference("step", f"{a.step} and {b.step}")
    if "data" in a.meta and "data" in b.meta and a.meta["data"] != b.meta["data"]:
        yield Difference("data", "another position in the training data")


def _tensors(
    a: Source, b: Source, ours: dict[str, str], theirs: dict[str, str]
) -> Iterator[Difference]:
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            yield Difference(name, f"only in {(a if name in ours else b).folder}")
        elif _kind(a, name) != _kind(b, name):
            yield Difference(name, f"{_kind(a, name)} and {_kind(b, name)}")
        elif ours[name] != theirs[name]:
            yield _elements(a, b, name)


def _kind(source: Source, name: str) -> str:
    info = source.tensors[name]
    return f"{dtype_name(info)} {list(info.shape)}"


def _elements(a: Source, b: Source, name: str) -> Difference:
    info = a.tensors[name]
    numel, step = math.prod(info.shape), LARGEST // 8
    largest, count = 0.0, 0
    for first in range(0, numel, step):
        size = min(step, numel - first)
        x, y = a.read(name, first, size), b.read(name, first, size)
        apart = (_bits(x) != _bits(y)).any(1)
        count += int(apart.sum())
        gap = (x[apart].double() - y[apart].double()).abs()
        largest = max(largest, float(gap.max())) if len(gap) else largest
    return Difference(name, "values", largest, count)


def _bits(data: torch.Tensor) -> Any:
    return data.view(torch.uint8).view(-1, data.dtype.itemsize)
