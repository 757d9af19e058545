import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moelstrom import UserError
from moelstrom.launch.data import prepare as module
from moelstrom.launch.data.config import DataConfig
from moelstrom.launch.data.corpus import folder_source
from moelstrom.launch.data.dataset import MANIFEST, Dataset
from moelstrom.launch.data.prepare import ensure_default, load_dataset, prepare
from moelstrom.launch.data.source import Document, TextSource
from moelstrom.launch.data.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


def write_texts(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True)
    lines = (json.dumps({"text": text}) for text in texts)
    (folder / "docs.jsonl").write_text("\n".join(lines))
    return folder


def make(out: Path, folder: Path) -> Dataset:
    return prepare(out, {"a": folder}, TOKENIZER, valid_fraction=0.1, progress=False)


def texts_of(dataset: Dataset, domain: str, split: str) -> list[str]:
    reader = dataset.open(domain, split)  # type: ignore[arg-type]
    documents = [reader[i] for i in range(len(reader))]
    assert all(document[-1] == 256 for document in documents)
    return [bytes(document[:-1].tolist()).decode() for document in documents]


@pytest.fixture
def small_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default corpus cut to a hundred files, for speed."""
    whole = module.python_sources()
    monkeypatch.setattr(
        module,
        "python_sources",
        lambda: {
            name: TextSource(source.files[:100], source.read) for name, source in whole.items()
        },
    )


def test_every_document_is_in_one_split_once(tmp_path: Path) -> None:
    texts = [f"document {i} é" for i in range(300)]
    folder = write_texts(tmp_path / "in", texts + texts[:50] + ["", "  \n"])
    dataset = prepare(tmp_path / "out", {"a": folder, "b": folder}, TOKENIZER, valid_fraction=0.1)
    for domain in ("a", "b"):
        train, valid = (texts_of(dataset, domain, split) for split in ("train", "valid"))
        assert sorted(train + valid) == sorted(texts)
        assert 10 < len(valid) < 60
        info = dataset.manifest.domains[domain]
        assert info.duplicates == 50
        assert info.train.documents == len(train)
        assert info.train.tokens == sum(len(text.encode()) + 1 for text in train)
    # The same text in two domains is held out of both.
    assert texts_of(dataset, "a", "valid") == texts_of(dataset, "b", "valid")
    assert dataset.open("a", "train").dtype == np.uint16


def test_split_does_not_depend_on_the_other_documents(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(200)]
    first = write_texts(tmp_path / "1", texts)
    second = write_texts(tmp_path / "2", [*texts[::-1], "another"])
    held_out = []
    for name, folder in (("x", first), ("y", second)):
        dataset = prepare(tmp_path / name, {"a": folder}, TOKENIZER, valid_fraction=0.1)
        held_out.append(set(texts_of(dataset, "a", "valid")))
    assert held_out[0] == held_out[1] - {"another"}


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(200)]
    prints = []
    for name, content in (("1", texts), ("2", texts), ("3", [*texts, "more"])):
        folder = write_texts(tmp_path / "in" / name, content)
        prints.append(make(tmp_path / name, folder).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_fingerprint_follows_each_split(tmp_path: Path, split: str) -> None:
    folder = write_texts(tmp_path / "in", [f"document {i}" for i in range(200)])
    dataset = make(tmp_path / "out", folder)
    manifest = tmp_path / "out" / MANIFEST
    sha = getattr(dataset.manifest.domains["a"], split).bin_sha256
    manifest.write_text(manifest.read_text().replace(sha, "0" * 64))
    assert Dataset(tmp_path / "out").fingerprint != dataset.fingerprint


def test_group_is_held_out_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(f"{i} of {i % 40}", f"group {i % 40}") for i in range(400)]
    source = TextSource([Path(__file__)], lambda opened, file, skip: iter(documents))
    monkeypatch.setattr(module, "python_sources", lambda: {"a": source})
    monkeypatch.setattr(module, "VALID_FRACTION", 0.3)
    dataset = ensure_default(tmp_path / "out", TOKENIZER)
    train, valid = (
        {text.split()[-1] for text in texts_of(dataset, "a", split)} for split in ("train", "valid")
    )
    assert train and valid
    assert not train & valid


def test_refuses_what_is_there(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "in", [f"document {i}" for i in range(200)])
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", folder)
    before = (tmp_path / "empty" / "dataset.json").read_bytes()
    with pytest.raises(UserError, match="empty: a dataset is there already"):
        make(tmp_path / "empty", folder)
    assert (tmp_path / "empty" / "dataset.json").read_bytes() == before
    for attempt in (
        lambda: make(folder, folder),
        lambda: ensure_default(folder, TOKENIZER),
    ):
        with pytest.raises(UserError, match="in: it exists and is no empty folder"):
            attempt()


@pytest.mark.parametrize(
    ("texts", "fraction", "message"),
    [
        ([" "], 0.1, "domain a: no text found; give UTF-8"),
        (["x"], 1e-9, "domain a: nothing can be held out of 1 documents, the last of 2 tokens"),
        (["x"], 0.999999999, "domain a: nothing can be held out of 1 documents"),
        (["x"], 1.0, "valid_fraction: 1.0 is not from 0 to below 1"),
        (["x"], -0.1, "valid_fraction: -0.1 is not from 0"),
        (["x"], float("nan"), "valid_fraction: nan is not from 0"),
    ],
)
def test_useless_input_leaves_nothing(
    tmp_path: Path, texts: list[str], fraction: float, message: str
) -> None:
    folder = write_texts(tmp_path / "in", texts)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "out", {"a": folder}, TOKENIZER, valid_fraction=fraction)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("texts", "fraction"),
    [
        (["0123456789" * 10], 0.1),
        (["0123456789" * 10], 0.9),
        (["xy"], 0.5),
        (["first", "second", "0123456789"], 1e-12),
    ],
)
def test_too_few_documents_are_divided(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], texts: list[str], fraction: float
) -> None:
    """The last document is cut in two where one split would have none, and it is said."""
    folder = write_texts(tmp_path / "in", texts)
    dataset = prepare(tmp_path / "out", {"a": folder}, TOKENIZER, valid_fraction=fraction)
    train, held = (texts_of(dataset, "a", split) for split in ("train", "valid"))
    # A single document's own hash says which split has its beginning.
    assert [*train[:-1], train[-1] + held[-1]] == texts or held[-1] + train[-1] == texts[0]
    assert dataset.manifest.domains["a"].divided
    assert "a: no whole document to hold out; the last one is cut in two" in capfd.readouterr().err
    tokens = dataset.manifest.domains["a"].valid.tokens
    expected = max(round(fraction * sum(len(text) + 1 for text in texts)), 2)
    assert tokens == pytest.approx(expected, abs=1)


def test_no_more_than_half_of_one_document_of_many_moves(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "in", ["first" * 100, "second" * 100, "0123456789"])
    dataset = prepare(tmp_path / "out", {"a": folder}, TOKENIZER, valid_fraction=0.02)
    assert texts_of(dataset, "a", "train")[-1] == "01234"
    assert texts_of(dataset, "a", "valid") == ["56789"]


def test_a_divided_dataset_is_like_any_other(tmp_path: Path) -> None:
    """Hash, index and files of the split that was cut are those of its tokens."""
    folder = write_texts(tmp_path / "in", ["ab " * 3_000_000])
    dataset = prepare(tmp_path / "out", {"a": folder}, TOKENIZER, valid_fraction=0.3)
    info = dataset.manifest.domains["a"]
    assert (info.train.documents, info.valid.documents) == (1, 1)
    assert info.valid.tokens == round(0.3 * 9_000_001)
    for split, made in (("train", info.train), ("valid", info.valid)):
        data = (tmp_path / "out" / f"a-{split}.bin").read_bytes()
        assert hashlib.sha256(data).hexdigest() == made.bin_sha256
    train, valid = (texts_of(dataset, "a", split)[0] for split in ("train", "valid"))
    assert train + valid == "ab " * 3_000_000


def test_nothing_may_be_held_out(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "in", ["one", "two"])
    dataset = prepare(tmp_path / "out", {"a": folder}, TOKENIZER, valid_fraction=0)
    assert texts_of(dataset, "a", "train") == ["one", "two"]
    assert texts_of(dataset, "a", "valid") == []
    assert not dataset.manifest.domains["a"].divided


def test_finished_domains_outlive_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_texts(tmp_path / "good", [f"document {i}" for i in range(200)])
    bad = write_texts(tmp_path / "bad", ["  "])
    domains = {"a": good, "b": bad}
    with pytest.raises(UserError, match=r"domain b: no text found.*\(a: finished, and kept in"):
        prepare(tmp_path / "out", domains, TOKENIZER)
    (bad / "docs.jsonl").write_text('{"text": "some text at last"}')
    read: list[Path] = []
    original = module.DomainWriter.write

    def spy(self: module.DomainWriter, source: TextSource, advance: Any) -> Any:
        read.extend(source.files)
        return original(self, source, advance)

    monkeypatch.setattr(module.DomainWriter, "write", spy)
    dataset = prepare(tmp_path / "out", domains, TOKENIZER)
    assert read == [bad / "docs.jsonl"]
    assert "a: finished before, kept in" in capfd.readouterr().err
    fresh = prepare(tmp_path / "fresh", domains, TOKENIZER)
    assert dataset.fingerprint == fresh.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"good", "bad", "out", "fresh"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        p.name for p in (tmp_path / "fresh").iterdir()
    }


@pytest.mark.parametrize("change", ["text", "share", "tokenizer", "form"])
def test_a_finished_domain_of_something_else_is_made_anew(tmp_path: Path, change: str) -> None:
    good = write_texts(tmp_path / "good", [f"document {i}" for i in range(200)])
    bad = write_texts(tmp_path / "bad", [" "])
    options: dict[str, Any] = {"valid_fraction": 0.1}
    with pytest.raises(UserError, match="domain b: "):
        prepare(tmp_path / "out", {"a": good, "b": bad}, TOKENIZER, **options)
    tokenizer = TOKENIZER
    if change == "text":
        with (good / "docs.jsonl").open("a") as file:
            file.write('\n{"text": "one more"}')
    elif change == "tokenizer":
        tokenizer = ByteTokenizer()
        tokenizer.fingerprint = "other"
    else:
        options |= {"valid_fraction": 0.3} if change == "share" else {"form": "text"}
    made = prepare(tmp_path / "out", {"a": good}, tokenizer, **options)
    fresh = prepare(tmp_path / "fresh", {"a": good}, tokenizer, **options)
    assert made.fingerprint == fresh.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"good", "bad", "out", "fresh"}


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"domain '\.\./x'"):
        prepare(tmp_path / "out", {"../x": tmp_path}, TOKENIZER)
    with pytest.raises(UserError, match="domains: none given"):
        prepare(tmp_path / "out", {}, TOKENIZER)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"no text found \(skipped 1: .*x\.bin: a binary file\)"):
        prepare(tmp_path / "out", {"a": tmp_path / "in"}, TOKENIZER)


def test_the_current_folder_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_texts(tmp_path / "in", ["text"])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"^\.: the folder is made beside its place"):
        prepare(Path(), {"x": folder}, TOKENIZER)
    with pytest.raises(UserError, match=r"^\.: the folder is made beside its place"):
        ensure_default(Path(), TOKENIZER)


def test_unwritable_place(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "in", [f"document {i}" for i in range(200)])
    with pytest.raises(UserError, match=r"docs\.jsonl/out: cannot write the dataset"):
        prepare(folder / "docs.jsonl" / "out", {"a": folder}, TOKENIZER)


def test_many_at_once_share_one_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_texts(tmp_path / "in", [f"text {i}" for i in range(5000)])
    monkeypatch.setattr(module, "python_sources", lambda: {"a": folder_source("a", folder)})
    prints: list[str] = []
    barrier = threading.Barrier(3)

    def work() -> None:
        barrier.wait()
        prints.append(ensure_default(tmp_path / "data", TOKENIZER).fingerprint)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(prints) == 3
    assert len(set(prints)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in", "data"}


@pytest.mark.usefixtures("small_python")
def test_load_prepares_the_default_corpus_only_when_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "data")
    with pytest.raises(
        UserError, match=r"data\.path: .*data is not a folder; .*data\.corpus: python"
    ):
        load_dataset(DataConfig(path=path))
    dataset = load_dataset(DataConfig(path=path, corpus="python"))
    assert dataset.domains == ("code", "prose")
    assert load_dataset(DataConfig(path=path)).fingerprint == dataset.fingerprint
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match=r"data\.tokenizer: .*t\.json did not make the dataset"):
        load_dataset(DataConfig(path=path, tokenizer=str(tmp_path / "t.json")))


def test_damaged_dataset_is_named(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "in", [f"document {i}" for i in range(200)])
    dataset = make(tmp_path / "out", folder)
    for kind in ("bin", "idx"):
        other = tmp_path / "out" / f"a-valid.{kind}"
        other.replace(tmp_path / "out" / f"a-train.{kind}")
    with pytest.raises(UserError, match=r"a-train\.bin: it has .* but dataset\.json says"):
        dataset.open("a", "train")
    manifest = tmp_path / "out" / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UserError, match=r"dataset\.json: format_version: Input should be 1"):
        Dataset(tmp_path / "out")
    manifest.unlink()
    with pytest.raises(UserError, match=r"out has no dataset\.json"):
        Dataset(tmp_path / "out")
