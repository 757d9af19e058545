"""10,000 mutated manifests and safetensors headers: a UserError or the right data, nothing else."""

import json
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moelstrom import UserError
from moelstrom.moe.checkpoint.folder import MANIFEST, MARKER, marker_text
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

CASES = 5_000
"""Of each kind."""
RSS_MB, CPU_S = 200, 1.0
"""Most memory that all cases together may add, and most CPU time of one case."""
NUMBERS = [0, 1, -1, 7, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**64, 10**30, 0.5, -0.0, 1e308]
TEXTS = ["", "w", "F32", "I32", "F64", "BF16", "F4", "C64", "E8M0", "float16", "../x.safetensors"]
TEXTS += [
    "rank-00000.safetensors",
    "__metadata__",
    "\x00",
    "a\nb",
    "rows",
    "stride",
    "\ud800",
    "é" * 2000,
    "nan",
    "0" * 64,
]
VALUES: list[Any] = [*NUMBERS, *TEXTS, None, True, [], {}, [[]], [1] * 20, {"a": {}}]
TOKENS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"NaN", b"1e999", b"-", b"9" * 400]
TOKENS += [b"\xff", b"\x00", b"null", b"true", b"[" * 3000, b" " * 100, b'{"w@0":']

FOUND = Counter[str]()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tensors' bytes all differ."""
    generator = torch.Generator().manual_seed(0)

    def shard(name: str, shape: tuple[int, ...], kind: torch.dtype, part: slice) -> Shard:
        numel = torch.Size(shape).numel()
        data = torch.randint(0, 100, (numel,), generator=generator).to(kind)[part].contiguous()
        return Shard(name, shape, part.start or 0, data)

    path = tmp_path_factory.mktemp("fuzz")
    saver = Saver(CheckpointConfig(path=str(path), asynchronous=False), 0, 1)
    shards = [
        shard("w", (10, 10), torch.float32, slice(0, 60)),
        shard("w", (10, 10), torch.float32, slice(60, 100)),
        shard("v", (10, 10), torch.float32, slice(None)),
        shard("experts.0.up", (3, 4), torch.bfloat16, slice(None)),
        shard("rng/0/cpu", (40,), torch.uint8, slice(None)),
        shard("empty", (0, 3), torch.int64, slice(None)),
    ]
    saver.save(3, shards, {"data": {"position": 5}, "loss": 1.5})
    saver.close()
    return path / "step-00000003"


def bits(data: torch.Tensor) -> bytes:
    return data.contiguous().view(torch.uint8).numpy().tobytes()


def contents(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    """All data of a checkpoint, through its checks."""
    reader = Reader(folder)
    return {name: (info.dtype, bits(reader.read(name))) for name, info in reader.tensors.items()}


def mutated_bytes(rng: random.Random, text: bytes) -> bytes:
    """One to three edits of the bytes, blind to what they mean."""
    out = bytearray(text)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice([1, 1, 2, 5, 50]))
        how = rng.randrange(6)
        if how == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del out[at:end]
        elif how == 2:
            out[at:at] = rng.choice(TOKENS)
        elif how == 3:
            out[at:at] = out[at:end]
        elif how == 4:
            out[at:end] = rng.choice(TOKENS)
        else:
            digits = [i for i, byte in enumerate(out) if chr(byte).isdigit()]
            out[rng.choice(digits or [0])] = rng.choice(b"0123456789")
    return bytes(out)


def mutated_json(rng: random.Random, text: bytes) -> bytes:
    """One to three edits of the values: replaced, removed, added, or put in another's place."""
    data = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        holders = [data, *inner(data)]
        holder = rng.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        how = rng.randrange(4) if keys else 2
        if how == 0:
            holder[rng.choice(keys)] = rng.choice(VALUES)
        elif how == 1:
            del holder[rng.choice(keys)]
        elif how == 2:
            add(rng, holder, rng.choice([*VALUES, rng.choice(holders)]))
        else:
            one, two = rng.choice(keys), rng.choice(keys)
            holder[one], holder[two] = holder[two], holder[one]
        # Without this a value may come to hold itself.
        data = json.loads(json.dumps(data))
    return json.dumps(data, separators=(",", ":")).encode()


def inner(data: Any) -> list[Any]:
    """Every dict and list inside."""
    values = data.values() if isinstance(data, dict) else data
    nested = [value for value in values if isinstance(value, dict | list)]
    return nested + [deeper for value in nested for deeper in inner(value)]


def add(rng: random.Random, holder: Any, value: Any) -> None:
    value = json.loads(json.dumps(value))
    if isinstance(holder, dict):
        holder[rng.choice([*TEXTS, *holder])] = value
    else:
        holder.insert(rng.randint(0, len(holder)), value)


def check(folder: Path, right: Callable[[dict[str, tuple[torch.dtype, bytes]]], bool]) -> None:
    """Read everything: refused in one line that names a file here, or right."""
    started = time.process_time()
    try:
        found = contents(folder)
    except UserError as error:
        FOUND["refused"] += 1
        message = str(error)
        assert message.startswith(str(folder)) and "\n" not in message and len(message) < 2000
    else:
        FOUND["read"] += 1
        assert right(found)
    assert time.process_time() - started < CPU_S


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_manifests(saved: Path, tmp_path: Path) -> None:
    """Every third one under the old marker: refused unless it is the same. The others with a marker
    that fits: what is read then has the hashes of what was saved."""
    folder = tmp_path / saved.name
    shutil.copytree(saved, folder)
    original, true = (saved / MANIFEST).read_bytes(), contents(saved)
    before = memory_mb()
    FOUND.clear()
    for seed in range(CASES):
        rng = random.Random(seed)
        text = rng.choice([mutated_bytes, mutated_json])(rng, original)
        (folder / MANIFEST).write_bytes(text)
        if seed % 3:
            (folder / MARKER).write_text(marker_text(text))
            check(folder, lambda found: {data for _, data in found.values()} <= allowed(true))
        else:
            (folder / MARKER).write_text(marker_text(original))

            def same(found: dict[str, tuple[torch.dtype, bytes]], text: bytes = text) -> bool:
                return text == original and found == true

            check(folder, same)
    assert FOUND["refused"] > CASES / 2 and FOUND["read"] > 50
    assert memory_mb() - before < RSS_MB


def allowed(true: dict[str, tuple[torch.dtype, bytes]]) -> set[bytes]:
    """Whole tensors, and the pieces of the one that has two: a shorter shape may ask for one."""
    whole = {data for _, data in true.values()}
    return whole | {true["w"][1][:240], true["w"][1][240:], b""}


def test_headers(saved: Path, tmp_path: Path) -> None:
    """Headers of the tensors' file, which the manifest's hashes do not cover themselves."""
    folder = tmp_path / saved.name
    shutil.copytree(saved, folder)
    (file,) = folder.glob("*.safetensors")
    original, true = file.read_bytes(), contents(saved)
    size = 8 + int.from_bytes(original[:8], "little")
    before = memory_mb()
    FOUND.clear()
    for seed in range(CASES):
        rng = random.Random(seed)
        file.write_bytes(mutated_file(rng, original[8:size], original[size:]))
        check(folder, lambda found: found == true)
    assert FOUND["refused"] > CASES / 2 and FOUND["read"] > 50
    assert memory_mb() - before < RSS_MB


def mutated_file(rng: random.Random, header: bytes, data: bytes) -> bytes:
    """A file of the old size in most cases: the size alone would refuse it."""
    text = rng.choice([mutated_bytes, mutated_json])(rng, header.rstrip())
    if len(text) <= len(header) and rng.random() < 0.8:
        text = text.ljust(len(header))
    length = len(text)
    if rng.random() < 0.1:
        length = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, 10**8])
    whole = length.to_bytes(8, "little") + text + data
    wanted = 8 + len(header) + len(data)
    return whole[:wanted].ljust(wanted, b"\0") if rng.random() < 0.9 else whole
