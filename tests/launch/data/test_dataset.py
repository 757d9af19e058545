"""What `dataset.json` may not say."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moelstrom import UserError
from moelstrom.launch.data.dataset import MANIFEST, Dataset
from moelstrom.launch.data.prepare import prepare
from moelstrom.launch.data.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("data")
    (root / "x.txt").write_text("some text")
    prepare(root / "out", {"a": root / "x.txt"}, ByteTokenizer(), progress=False)
    return json.loads((root / "out" / MANIFEST).read_text())


def place(folder: Path, content: dict[str, Any]) -> Path:
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "name", ["../../data/email", "..", "/etc/x", "a/b", "a\\b", "", ".hidden", "a\n", "é"]
)
def test_a_domain_stays_in_its_folder(tmp_path: Path, content: dict[str, Any], name: str) -> None:
    info = content["domains"]["a"]
    with pytest.raises(UserError, match=r"dataset\.json: domains\."):
        Dataset(place(tmp_path, content | {"domains": {name: info}}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 2**25}, "tokenizer.vocab_size"),
        ({"vocab_size": 0}, "tokenizer.vocab_size"),
        ({"eod": 257}, "tokenizer: .*eod is 257, beyond vocab_size 257"),
    ],
)
def test_the_vocabulary_is_bounded(
    tmp_path: Path, content: dict[str, Any], fields: dict[str, int], message: str
) -> None:
    tokenizer = content["tokenizer"] | fields
    with pytest.raises(UserError, match=rf"dataset\.json: {message}"):
        Dataset(place(tmp_path, content | {"tokenizer": tokenizer}))


def test_there_are_domains(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"dataset\.json: domains: "):
        Dataset(place(tmp_path, content | {"domains": {}}))


def test_counts_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("some text")
    out = tmp_path / "out"
    dataset = prepare(out, {"a": tmp_path / "x.txt"}, ByteTokenizer(), progress=False)
    for what in ("tokens", "documents"):
        made = json.loads((out / MANIFEST).read_text())
        made["domains"]["a"]["train"][what] = 10**400
        (tmp_path / what).mkdir()
        changed = Dataset(place(tmp_path / what, made))
        changed.path = out
        with pytest.raises(UserError, match=rf"a-train\.idx: it counts \d+ {what}, but dataset"):
            changed.open("a", "train")
    dataset.open("a", "train")


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(UserError, match=r"dataset\.json: cannot be read \(Not a regular file\)"):
        Dataset(tmp_path)
