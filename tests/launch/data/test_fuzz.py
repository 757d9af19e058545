"""Damaged and foreign files: read all the same, or one clear error; never anything else."""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from moelstrom import UserError
from moelstrom.launch.data.config import DataConfig
from moelstrom.launch.data.corpus import folder_source
from moelstrom.launch.data.indexed import IndexedReader
from moelstrom.launch.data.loader import Loader
from moelstrom.launch.data.prepare import prepare
from moelstrom.launch.data.tokenizer import ByteTokenizer, load_tokenizer

CASES = int(os.environ.get("MOELSTROM_FUZZ_CASES", "100"))
"""Of each kind and seed."""
TEXTS = ["the theme of the thesis", "é漢\U0001f600\0 </s> <|endoftext|>", "", " " * 50, "x" * 500]
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**32,
    2**63,
    2**70,
    1e308,
    0.5,
    "",
    "x",
    "\ud800",
]
ODD += ["</s>", "é" * 300, "../../data/email", [], [0], [[]], ["a", "b"], {}, {"type": "BPE"}]


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container and key or index in it."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            places(value[key], found)
    return found


def mutated_json(content: Any, draw: random.Random) -> bytes:
    """A valid value with a few places changed, removed, or swapped; or its text, damaged."""
    content = copy.deepcopy(content)
    if draw.random() < 0.3:
        return mutated_bytes(json.dumps(content).encode(), draw)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        # Few places are not among the many of a vocabulary.
        choices = places(content, [])
        outer = [
            place for place in choices if place[0] is content or draw.random() < 20 / len(choices)
        ]
        holder, key = draw.choice(outer or choices)
        kind = draw.random()
        if kind < 0.15:
            del holder[key]
        elif kind < 0.3:
            holder[key] = copy.deepcopy(draw.choice(choices)[0])
        elif kind < 0.4 and isinstance(holder, dict):
            holder[str(draw.choice(ODD))] = holder.pop(key)
        else:
            holder[key] = draw.choice(ODD)
        if not isinstance(content, dict) or not content:
            break
    return json.dumps(content).encode()


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut, repeated or put in."""
    content = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(len(content) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            content[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            content[place : place + draw.choice([1, 4, 8])] = b""
        elif kind == 2:
            content[place:place] = draw.choice([b"\0", b"{", b'"', b"\xff" * 8, b"[" * 2000, b"\n"])
        elif kind == 3:
            content[place : place + 8] = draw.randrange(2**64).to_bytes(8, "little")
        else:
            del content[place:]
    return bytes(content)


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS[:1] * 10, trainer)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    return tokenizer


def sentence_pieces() -> tokenizers.Tokenizer:
    vocab = [("<unk>", 0.0), ("</s>", 0.0), ("\u2581the", -1.0), ("e", -2.0), ("\u2581", -3.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "_")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def word_pieces() -> tokenizers.Tokenizer:
    vocab = {"[UNK]": 0, "[EOS]": 1, "the": 2, "##e": 3, "th": 4}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.FixedLength(5)]
    )
    tokenizer.add_tokens(["<|endoftext|>", tokenizers.AddedToken("é", single_word=True)])
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, sentence_pieces, word_pieces])
@pytest.mark.parametrize("seed", range(2))
def test_tokenizers(tmp_path: Path, make: Callable[[], tokenizers.Tokenizer], seed: int) -> None:
    draw, base, path = random.Random(seed), json.loads(make().to_str()), tmp_path / "t.json"
    good = 0
    for _ in range(CASES):
        path.write_bytes(mutated_json(base, draw))
        try:
            tokenizer = load_tokenizer(str(path))
            for ids in tokenizer.encode_batch(TEXTS):
                assert ((ids >= 0) & (ids < tokenizer.vocab_size) & (ids != tokenizer.eod)).all()
            good += 1
        except UserError as error:
            assert str(error).startswith("data.tokenizer: ")
    assert 0 < good < CASES


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "x.txt").write_text("abc " * 200)
    files = {"a": root / "x.txt", "b": root / "x.txt"}
    prepare(root / "out", files, ByteTokenizer(), valid_fraction=0.3, progress=False)
    return root / "out"


def read_all(path: Path) -> None:
    """A run's look at its data."""
    config = DataConfig(path=str(path), seq_len=8, micro_batch_size=2, global_batch_size=4)
    loader = Loader(config, seed=0, dp_rank=0, dp_size=1)
    loader.next()
    for domain in loader.domains:
        list(loader.valid(domain, 3))


@pytest.mark.parametrize("name", ["dataset.json", "a-train.idx", "b-valid.idx", "a-train.bin"])
@pytest.mark.parametrize("seed", range(2))
def test_datasets(dataset: Path, name: str, seed: int) -> None:
    draw, file = random.Random(seed), dataset / name
    base = file.read_bytes()
    refused = 0
    try:
        for case in range(CASES):
            as_json = name == "dataset.json"
            file.write_bytes(
                mutated_json(json.loads(base), draw) if as_json else mutated_bytes(base, draw)
            )
            os.utime(file, ns=(0, case))
            try:
                read_all(dataset)
            except UserError as error:
                refused += 1
                assert str(dataset) in str(error) or str(error).startswith("data."), error
    finally:
        file.write_bytes(base)
    assert refused > CASES // 2
    read_all(dataset)


@pytest.mark.parametrize("seed", range(2))
def test_indexes_alone(dataset: Path, tmp_path: Path, seed: int) -> None:
    """Without the sizes that dataset.json knows."""
    draw = random.Random(seed)
    base = (dataset / "a-train.idx").read_bytes()
    (tmp_path / "x.bin").write_bytes((dataset / "a-train.bin").read_bytes())
    for _ in range(CASES * 5):
        (tmp_path / "x.idx").write_bytes(mutated_bytes(base, draw))
        try:
            reader = IndexedReader(tmp_path / "x")
            assert sum(len(reader[i]) for i in range(len(reader))) == len(reader.tokens)
        except UserError as error:
            assert str(tmp_path) in str(error)


@pytest.mark.parametrize("seed", range(2))
def test_records(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    record = {"text": "some text\n\u00e9", "meta": {"url": ["a", 1, None]}}
    forms: list[bytes] = [
        b"".join(json.dumps(record).encode() + b"\n" for _ in range(4)),
        json.dumps(record, indent=1).encode(),
        json.dumps([record, record]).encode(),
        b"plain text\nof two lines\n",
    ]
    for _ in range(CASES):
        path = tmp_path / draw.choice(["x.jsonl", "x.json", "x.txt", "x"])
        path.write_bytes(mutated_bytes(draw.choice(forms), draw))
        source = folder_source("x", path)
        documents = [document.text for document in source]
        assert documents or source.skips or not path.read_bytes().strip()
        assert source.done == source.total
        assert all(text.encode().decode() == text for text in documents)


def test_prepared_from_anything(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(CASES):
        (folder / f"{i}.json").write_bytes(draw.bytes(int(draw.integers(0, 40))))
    (folder / "good.txt").write_text("good text")
    made = prepare(tmp_path / "out", {"x": folder}, ByteTokenizer(), progress=False)
    assert made.manifest.domains["x"].train.documents >= 1
