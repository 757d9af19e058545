import json
import os
from pathlib import Path

import pytest

from moelstrom import UserError
from moelstrom.launch.data.corpus import folder_source
from moelstrom.launch.data.formats import Format, records
from moelstrom.launch.data.python_text import MAX_CODE_BYTES, python_sources
from moelstrom.launch.data.source import PIECE


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
    assert source.skips == 4
    text = source.reasons()
    assert "image.png: a binary file" in text
    assert "latin.txt: not UTF-8" in text
    assert "z.jsonl:3: no JSON object" in text
    assert "z.jsonl:4: no string in its field `text`" in text


def test_one_file(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("text")
    assert [document.text for document in folder_source("x", tmp_path / "only.txt")] == ["text"]


RECORDS = b'{"text": "one", "url": "a"}\n\n{"text": "two", "url": "b"}\n'


def read(tmp_path: Path, name: str, data: bytes, form: Format = "auto") -> tuple[list[str], str]:
    """The documents of a file, and what was left out."""
    file = tmp_path / name
    file.write_bytes(data)
    source = folder_source("x", file, form)
    return [document.text for document in source], source.reasons().replace(str(file), name)


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.JSONL", "x.ndjson", "x.jsonlines", "x.json", "x.txt", "x", "x.jsonl.1"]
)
def test_records_are_told_by_content(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name, RECORDS) == (["one", "two"], "")
    assert read(tmp_path, name, b"\xef\xbb\xbf" + RECORDS) == (["one", "two"], "")
    assert read(tmp_path, name, RECORDS[:28]) == (["one"], "")
    documents, skipped = read(tmp_path, name, b'{"text": "cut sh\n' + RECORDS + b'{"url": 1}')
    assert documents == ["one", "two"]
    assert "no JSON object" in skipped and f"{name}:5: no string in its field `text`" in skipped


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{ braces } in prose",
        "[1, 2]",
        "{}x",
        "a\n" + RECORDS.decode(),
        "[citation] needed",
        '{"a": // no JSON\n1}',
        '{"key": 1} is how it starts',
    ],
)
def test_what_is_no_json_object_is_text(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "x.json", text.encode())[0] == [text]


def test_one_record_over_many_lines(tmp_path: Path) -> None:
    record = json.dumps({"url": {"a": [1]}, "text": "one\ntwo"}, indent=1)
    assert read(tmp_path, "x.json", record.encode()) == (["one\ntwo"], "")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'[\n {"text": "one"},\n {"text": "two"}]', "a JSON array of objects; write one object a"),
        (b'{"body": "one"}', "one JSON object without a string in its field `text`; name it"),
        (b'{"text": 1}\n', "one JSON object without a string in its field `text`"),
        (b'{\n"body": "one"\n}', "one JSON object without a string in its field `text`"),
        (b'{"text": "one"}\nprose', "its first line is a JSON object, but its second is none"),
        (b'{\n"text": "one"\n}\n{\n"text": "two"\n}', "several JSON objects, but not one a line"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    documents, skipped = read(tmp_path, "x.json", data)
    assert documents == []
    assert skipped.startswith(f"x.json: {reason}")
    assert read(tmp_path, "x.json", data, "text") == ([data.decode()], "")
    assert read(tmp_path, "x.txt", data, "jsonl")[0] == (["one"] if data[-5:] == b"prose" else [])


def test_a_record_may_nest_too_deeply(tmp_path: Path) -> None:
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    documents, skipped = read(tmp_path, "x.jsonl", RECORDS + deep)
    assert documents == ["one", "two"]
    assert skipped == "x.jsonl:4: no JSON object"


def test_a_line_too_long_to_hold_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD", 2**20)
    long = b'{"text": "' + b"x" * (3 * 2**20) + b'"}\n'
    documents, skipped = read(tmp_path, "x.jsonl", RECORDS + long + RECORDS)
    assert documents == ["one", "two"] * 2
    assert skipped == "x.jsonl:4: longer than 1 MiB"


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_a_long_document_comes_in_pieces(tmp_path: Path, name: str) -> None:
    text = "".join(f"line {i} é\n" for i in range(900_000))
    (tmp_path / name).write_text(text if name == "x.txt" else json.dumps({"text": text}))
    found = list(folder_source("x", tmp_path / name))
    assert "".join(document.text for document in found) == text
    assert max(len(document.text) for document in found) <= 2 * PIECE
    assert [document.first for document in found] == [True] + [False] * (len(found) - 1)
    assert [document.last for document in found] == [False] * (len(found) - 1) + [True]
    assert all(document.text.startswith("\n") for document in found[1:])


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A FIFO would wait for a writer, and a device never end."""
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/dev/zero")
    (tmp_path / "d.txt").symlink_to("nowhere")
    source = folder_source("x", tmp_path)
    assert [document.text for document in source] == ["text"]
    assert f"{tmp_path}/b.txt: not a regular file (and 1 more)" in source.reasons()
    assert "d.txt: cannot be read (No such file" in source.reasons()
    for name in ("b.txt", "c.txt"):
        with pytest.raises(UserError, match=f"domain x: .*{name} is no folder and no regular file"):
            folder_source("x", tmp_path / name)


def test_a_file_that_turns_into_a_fifo_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    source = folder_source("x", tmp_path)
    (tmp_path / "a.txt").unlink()
    os.mkfifo(tmp_path / "a.txt")
    assert list(source) == []
    assert "a.txt: cannot be read (Not a regular file)" in source.reasons()


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
        source.stamps = [(file.stat().st_size, 0) for file in source.files]
    code, prose = list(sources["code"]), list(sources["prose"])
    assert any("Reformat the single paragraph" in document.text for document in prose)
    assert {document.group for document in prose} == {code[0].group}
    assert code[0].group


def test_a_docstring_of_eighty_characters_is_prose(tmp_path: Path) -> None:
    lengths = (79, 80, 81)
    functions = [f'def f{n}():\n    "{chr(64 + n - 78) * n}"\n' for n in lengths]
    file = tmp_path / "made.py"
    file.write_text("\n".join(functions))
    prose = python_sources()["prose"]
    prose.files, prose.stamps = [file], [(file.stat().st_size, 0)]
    assert [len(document.text) for document in prose] == [80, 81]
