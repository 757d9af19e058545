"""Comparing states: equal across layouts, and every kind of difference named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reshape_states import reshaped, synthetic

from moelstrom import UserError
from moelstrom.moe.checkpoint import folder as disk
from moelstrom.moe.checkpoint.manifest import digest
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.reshape.compare import differences, hashes, logical_hash, state_hash
from moelstrom.moe.checkpoint.reshape.synthetic import Synthetic
from moelstrom.moe.state.source import TensorInfo

NAME = "model/layers.1.ffn.experts.2.down"


class Edited(Synthetic):
    """A synthetic state with one tensor's values changed."""

    change = torch.zeros(128)

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        data = super().read(name, offset, numel)
        if name != NAME:
            return data
        values = data.view(torch.int32) % 1000
        return values.float() + self.change[offset : offset + len(data)]


def edited(folder: Path, values: dict[int, float]) -> Edited:
    source = synthetic(folder)
    source.__class__ = Edited
    source.change = torch.zeros(128)
    for index, value in values.items():
        source.change[index] = value
    return source


def test_equal_states_in_two_layouts(tmp_path: Path) -> None:
    a = reshaped(synthetic(tmp_path), tmp_path / "a", dp=3)
    b = reshaped(synthetic(tmp_path), tmp_path / "b", tp=2, pp=3)
    seen: list[tuple[int, int]] = []
    assert differences(a, b, 2, lambda *at: seen.append(at)) == []
    assert seen[-1] == (2 * a.nbytes, 2 * a.nbytes)
    assert state_hash(a, hashes(a, 2)) == state_hash(b, hashes(b, 1))


def test_the_hash_is_of_the_flattened_bytes(tmp_path: Path) -> None:
    source = synthetic(tmp_path)
    there = reshaped(source, tmp_path / "a", tp=4, dp=2)
    assert logical_hash(there, NAME) == digest(source.read(NAME)) == logical_hash(source, NAME, 64)


def test_changed_values_are_counted(tmp_path: Path) -> None:
    a = reshaped(edited(tmp_path, {}), tmp_path / "a", dp=2)
    b = reshaped(edited(tmp_path, {3: 0.5, 100: -2.0}), tmp_path / "b", tp=2)
    (found,) = differences(a, b, 2)
    assert (found.name, found.what, found.max_abs, found.count) == (NAME, "values", 2.0, 2)


def test_other_kinds_of_difference(tmp_path: Path) -> None:
    a, b = synthetic(tmp_path), synthetic(tmp_path)
    b.step, b.meta = 2, {**b.meta, "data": {"seed": 9}}
    del b.tensors[NAME]
    b.tensors["rng/0/cpu"] = TensorInfo(torch.uint8, (8,))
    found = {d.name: d.what for d in differences(a, b, 1)}
    assert found == {
        "step": "1 and 2",
        "data": "another position in the training data",
        NAME: f"only in {tmp_path}",
        "rng/0/cpu": "uint8 [5056] and uint8 [8]",
    }


def test_a_wrong_logical_hash_is_no_proof(tmp_path: Path) -> None:
    folder = reshaped(synthetic(tmp_path), tmp_path / "a", tp=2).folder
    manifest: dict[str, Any] = json.loads((folder / disk.MANIFEST).read_bytes())
    manifest["tensors"][NAME]["sha256"] = "0" * 64
    text = json.dumps(manifest).encode()
    (folder / disk.MANIFEST).write_bytes(text)
    (folder / disk.MARKER).write_text(disk.marker_text(text))
    with pytest.raises(UserError, match=f"'{NAME}' is not what its SHA-256 in the manifest says"):
        hashes(Reader(folder), 1)
