import json
from pathlib import Path

import pytest

from moelstrom import UserError
from moelstrom.launch.data.corpus import MAX_CODE_BYTES, folder_source, python_sources


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "b" / "two.txt").write_text("\ufefftwo é", encoding="utf-8")
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "image.png").write_bytes(b"PNG\0\1")
    lines = [json.dumps({"text": "three"}), "", "{", json.dumps({"body": 1}), '{"text": "\\ud800"}']
    (tmp_path / "z.jsonl").write_text("\n".join(lines))
    source = folder_source("web", tmp_path)
    assert [document.text for document in source] == ["one", "two é", "three", "?"]
    assert source.done == source.total > 0
    assert source.skipped == 4
    text = "\n".join(source.reasons)
    assert "image.png: a binary file" in text
    assert "latin.txt: not UTF-8" in text
    assert "z.jsonl:3: no JSON object" in text


def test_one_file(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("text")
    assert [document.text for document in folder_source("x", tmp_path / "only.txt")] == ["text"]


def test_missing_or_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"domain web: .*none does not exist"):
        folder_source("web", tmp_path / "none")
    with pytest.raises(UserError, match=r"domain web: .* holds no file"):
        folder_source("web", tmp_path)


def test_python_sources() -> None:
    sources = python_sources()
    code = list(sources["code"])
    names = [str(file) for file in sources["code"].files]
    assert any(name.endswith("/argparse.py") for name in names)
    assert not any("site-packages" in name or "/test/" in name for name in names)
    assert 1_000_000 < sum(len(document.text) for document in code) <= MAX_CODE_BYTES
    topic = next(iter(sources["prose"])).text
    assert len(topic) >= 80
    again = python_sources()
    assert again["code"].files == sources["code"].files


def test_a_module_and_its_docstrings_are_held_out_together() -> None:
    sources = python_sources()
    for source in sources.values():
        source.files = [file for file in source.files if file.name == "textwrap.py"]
        source.sizes = [file.stat().st_size for file in source.files]
    code, prose = list(sources["code"]), list(sources["prose"])
    assert any("Reformat the single paragraph" in document.text for document in prose)
    assert {document.group for document in prose} == {code[0].group}
    assert code[0].group
