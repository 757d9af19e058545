"""Ids beyond the vocabulary are found before training, once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from moelstrom import UserError
from moelstrom.launch.data import check
from moelstrom.launch.data.check import NOTE
from moelstrom.launch.data.config import DataConfig
from moelstrom.launch.data.dataset import Dataset
from moelstrom.launch.data.indexed import IndexedWriter
from moelstrom.launch.data.loader import Loader
from moelstrom.launch.data.prepare import load_dataset, prepare
from moelstrom.launch.data.tokenizer import ByteTokenizer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    text = tmp_path / "text"
    text.mkdir()
    (text / "x.jsonl").write_text("\n".join(json.dumps({"text": f"doc {i}"}) for i in range(100)))
    prepare(tmp_path / "out", {"a": text, "b": text}, ByteTokenizer(), valid_fraction=0.2)
    return tmp_path / "out"


def spoil(path: Path, name: str, place: int, value: int) -> None:
    """Set one token of a file, and its time to one of its own."""
    tokens = np.memmap(path / name, dtype="<u2", mode="r+")
    tokens[place] = value
    tokens.flush()
    os.utime(path / name, ns=(1, place + value))


def load(path: Path, run: Path | None = None) -> Dataset:
    return load_dataset(DataConfig(path=str(path)), run_folder=run)


@pytest.mark.parametrize("name", ["a-train.bin", "a-valid.bin", "b-train.bin", "b-valid.bin"])
@pytest.mark.parametrize("place", [0, 77, -1])
def test_an_id_beyond_the_vocabulary_is_named(
    path: Path, name: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CHUNK_TOKENS", 50)
    load(path)
    size = (path / name).stat().st_size // 2
    place %= size
    spoil(path, name, place, 257)
    with pytest.raises(UserError, match=rf"{name}: token {place} has the id 257, .* ends at 256"):
        load(path)
    with pytest.raises(UserError, match=r"has the id 257"):
        Loader(DataConfig(path=str(path), seq_len=8), seed=0, dp_rank=0, dp_size=1)
    spoil(path, name, place, 256)
    load(path)


def test_negative_ids_are_beyond_too(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", np.dtype(np.int32)) as writer:
        writer.add(np.array([5, -1]))
    with pytest.raises(UserError, match="token 1 has the id -1"):
        check._check(check.IndexedReader(tmp_path / "x"), 10)


def test_good_files_are_looked_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    original = check._check

    def spy(reader: check.IndexedReader, size: int) -> None:
        looked.append(reader.bin_path.name)
        original(reader, size)

    monkeypatch.setattr(check, "_check", spy)
    load(path)
    assert not looked, "what prepare wrote is good"
    (path / NOTE).write_text("[" * 100_000)
    load(path)
    assert len(looked) == 4
    load(path)
    assert len(looked) == 4
    os.utime(path / "a-valid.bin", ns=(1, 1))
    load(path)
    assert len(looked) == 8


def test_the_note_lies_with_the_run_where_the_dataset_cannot_be_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (path / NOTE).unlink()
    (path / NOTE).mkdir()  # as little to be written as in a folder of someone else
    load(path, run)
    assert (run / NOTE).is_file()
    assert not [file for file in path.iterdir() if file.name.startswith(f".{NOTE}")]
    monkeypatch.setattr(check, "_check", lambda reader, size: pytest.fail("looked again"))
    load(path, run)
