"""What a safetensors file may say of itself, read without its library."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moelstrom.moe.checkpoint.shardfile import ShardFile

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
LIES: dict[str, Any] = {
    "another kind": [1, 2],
    "no dtype": {**GOOD, "dtype": "F31"},
    "no shape": {**GOOD, "shape": "2x3"},
    "a negative size": {**GOOD, "shape": [-2, -3]},
    "a size that is no count": {**GOOD, "shape": [2.0, 3]},
    "a truth as a size": {**GOOD, "shape": [True, 6]},
    "too many dimensions": {**GOOD, "shape": [2, 3, *[1] * 63]},
    "an endless size": {**GOOD, "shape": [2**62, 0], "data_offsets": [0, 0]},
    "one offset": {**GOOD, "data_offsets": [24]},
    "three offsets": {**GOOD, "data_offsets": [0, 24, 24]},
    "fewer bytes than its shape": {**GOOD, "data_offsets": [0, 20]},
    "more bytes than its shape": {**GOOD, "data_offsets": [0, 32]},
    "bytes behind the file's end": {**GOOD, "data_offsets": [24, 48]},
    "offsets backwards": {**GOOD, "data_offsets": [24, 0]},
}


def write(path: Path, header: bytes, data: int = 40) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(data)))
    return path


def test_a_file_of_the_library(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(5, dtype=torch.int16)}
    save_file(tensors, tmp_path / "x", {"by": "test"})
    file = ShardFile(tmp_path / "x")
    assert sorted(file.keys()) == ["a", "b"]
    for name, value in tensors.items():
        dtype, shape, position = file.find(name)
        assert (dtype, shape) == (value.dtype, tuple(value.shape))
        data = bytearray(value.nbytes)
        file.read_into(position, memoryview(data))
        assert bytes(data) == value.numpy().tobytes()
        for piece in (1, 7, 64):
            sha = file.sha256(name, memoryview(bytearray(piece)))
            assert sha == hashlib.sha256(data).hexdigest()


def test_sixty_four_dimensions_and_no_elements_are_real(tmp_path: Path) -> None:
    entries = {
        "deep": {**GOOD, "shape": [2, 3, *[1] * 62]},
        "empty": {**GOOD, "shape": [0, 3], "data_offsets": [40, 40]},
    }
    file = ShardFile(write(tmp_path / "x", json.dumps(entries).encode()))
    assert len(file.find("deep")[1]) == 64 and file.find("empty")[1] == (0, 3)


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    header = json.dumps({"t": LIES[lie], "good": GOOD}).encode()
    file = ShardFile(write(tmp_path / "x", header))
    assert file.find("good")[1] == (2, 3)
    with pytest.raises(ValueError, match=r"its header is wrong at 't'|it has no tensor 't'"):
        file.find("t")
    with pytest.raises(ValueError, match="it has no tensor 'other'"):
        file.find("other")


@pytest.mark.parametrize("header", [b"{", b"[]", b"3", b"\xff" * 9, b"[" * 100_000])
def test_what_is_no_header_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ValueError, match="no safetensors file"):
        ShardFile(write(tmp_path / "x", header))


def test_a_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "x", b"{}", data=0)
    assert ShardFile(file).keys() == []
    for length in (0, 1, 3, 2**40):
        file.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(ValueError, match="no safetensors file"):
            ShardFile(file)


def test_a_file_that_ends_early_says_where(tmp_path: Path) -> None:
    file = ShardFile(write(tmp_path / "x", json.dumps({"t": GOOD}).encode(), data=24))
    position = file.find("t")[2]
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"it ends at byte {position + 20}"):
        file.read_into(position, memoryview(bytearray(24)))
