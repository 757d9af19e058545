import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moelstrom.moe.checkpoint.manifest import DTYPES
from moelstrom.moe.checkpoint.tensorfile import CODES, TensorFile
from moelstrom.moe.state.source import TensorInfo


def test_safetensors_reads_what_was_written_in_ranges(tmp_path: Path) -> None:
    whole = torch.randn(5, 7).to(torch.bfloat16)
    infos = {
        "ä": TensorInfo(torch.uint8, (3,)),
        "empty": TensorInfo(torch.float32, (0, 4)),
        "w": TensorInfo(torch.bfloat16, (5, 7)),
        "scalar": TensorInfo(torch.int64, ()),
    }
    with TensorFile(tmp_path / "f", infos, {"format": "pt"}) as file:
        file.write("w", whole.reshape(-1)[20:], 20)
        file.write("ä", torch.tensor([1, 2, 3], dtype=torch.uint8))
        file.write("w", whole.reshape(-1)[:20])
        file.write("scalar", torch.tensor(-9))
    found = load_file(tmp_path / "f")
    assert file.size == (tmp_path / "f").stat().st_size
    assert torch.equal(found["w"], whole)
    assert found["ä"].tolist() == [1, 2, 3]
    assert found["empty"].shape == (0, 4)
    assert found["scalar"].item() == -9


def test_every_type_of_a_manifest_has_a_code(tmp_path: Path) -> None:
    assert set(CODES) == set(DTYPES.values())
    infos = {name: TensorInfo(dtype, (2,)) for name, dtype in DTYPES.items()}
    with TensorFile(tmp_path / "f", infos):
        pass
    assert {name: t.dtype for name, t in load_file(tmp_path / "f").items()} == DTYPES


def test_a_full_disk_refuses_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        TensorFile(tmp_path / "f", {"w": TensorInfo(torch.float32, (8,))})
