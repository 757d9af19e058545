import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from moelstrom import UserError
from moelstrom.launch.data.tokenizer import (
    ByteTokenizer,
    HFTokenizer,
    load_tokenizer,
    tokenizer_fingerprint,
)


def bpe(path: Path, special: list[str]) -> Path:
    """A small byte-level tokenizer, saved with settings that would cut and pad."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the theme of the thesis"] * 10, trainer)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    return path


def test_bytes() -> None:
    tokenizer = load_tokenizer("byte")
    [ids] = tokenizer.encode_batch(["aé\n"])
    assert ids.tolist() == [97, 0xC3, 0xA9, 10]
    assert (tokenizer.vocab_size, tokenizer.eod) == (257, 256)


def test_file_keeps_whole_texts_and_never_ends_one_early(tmp_path: Path) -> None:
    path = bpe(tmp_path / "tokenizer.json", ["<pad>", "</s>"])
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.eod == 1
    texts = ["the theme of the thesis, at length", "a </s> b", ""]
    encoded = tokenizer.encode_batch(texts)
    plain = tokenizers.Tokenizer.from_file(str(path))
    plain.no_truncation()
    plain.no_padding()
    assert [plain.decode(ids.tolist()) for ids in encoded] == texts
    assert all(1 not in ids for ids in encoded)
    assert tokenizer.vocab_size == plain.get_vocab_size()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert tokenizer.fingerprint == tokenizer_fingerprint(str(path)) == digest


@pytest.mark.parametrize("special", [True, False])
def test_text_never_yields_an_added_end(tmp_path: Path, special: bool) -> None:
    """Many files do not call their end of a document special."""
    path = bpe(tmp_path / "tokenizer.json", ["<|endoftext|>"])
    content = path.read_text()
    assert content.count('"special": true') == 1
    if not special:
        path.write_text(content.replace('"special": true', '"special": false'))
    tokenizer = load_tokenizer(str(path))
    texts = ["a <|endoftext|> b<|endoftext|>", "<|endoftext|>", "plain"]
    encoded = tokenizer.encode_batch(texts)
    assert all(tokenizer.eod not in ids for ids in encoded)
    plain = tokenizers.Tokenizer.from_file(str(path))
    assert [plain.decode(ids.tolist()) for ids in encoded] == texts


def test_an_end_in_another_spelling_is_text_too(tmp_path: Path) -> None:
    """A token that is looked for after lower-casing."""
    path = bpe(tmp_path / "tokenizer.json", ["<pad>"])
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([tokenizers.AddedToken("<|endoftext|>", special=False, normalized=True)])
    tokenizer.save(str(path))
    end = tokenizer.token_to_id("<|endoftext|>")
    assert end in tokenizer.encode("a <|ENDOFTEXT|>").ids
    loaded = load_tokenizer(str(path))
    assert loaded.eod == end
    assert end not in loaded.encode_batch(["a <|ENDOFTEXT|> b"])[0]


def words(path: Path, vocab: dict[str, int], normalizer: str | None = None) -> Path:
    """A tokenizer of whole words, without added tokens."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer:
        tokenizer.normalizer = normalizers.Replace(normalizer, "[EOS]")
    tokenizer.save(str(path))
    return path


def test_text_never_yields_an_end_that_the_model_knows(tmp_path: Path) -> None:
    path = words(tmp_path / "t.json", {"a": 0, "[EOS]": 1, "[UNK]": 2})
    [ids] = load_tokenizer(str(path)).encode_batch(["a [EOS] a [EOS]"])
    assert ids.tolist() == [0, 2, 2, 0, 2, 2]
    with pytest.raises(UserError, match=r"t\.json makes its end of a document, \[EOS\], out of"):
        load_tokenizer(str(words(path, {"a": 0, "[EOS]": 1}, "b"))).encode_batch(["a b"])


def test_a_tokenizer_without_unknown_token_is_named(tmp_path: Path) -> None:
    path = words(tmp_path / "t.json", {"a": 0, "[EOS]": 1})
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.encode_batch(["a a"])[0].tolist() == [0, 0]
    with pytest.raises(UserError, match=r"data\.tokenizer: .*t\.json cannot encode .*UNK"):
        tokenizer.encode_batch(["a b"])


@pytest.mark.parametrize(
    ("part", "value", "what"),
    [
        (
            "normalizer",
            {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
            "is not a tokenizer",
        ),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "cannot encode a document"),
    ],
)
def test_a_panic_of_the_library_is_a_users_error(
    tmp_path: Path, part: str, value: dict[str, Any], what: str
) -> None:
    path = bpe(tmp_path / "t.json", ["</s>"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    with pytest.raises(UserError, match=rf"data\.tokenizer: .*t\.json {what}") as caught:
        load_tokenizer(str(path)).encode_batch(["text"])
    assert type(caught.value.__cause__).__name__ == "PanicException"


def test_interrupts_are_no_tokenizers_fault(tmp_path: Path) -> None:
    tokenizer = HFTokenizer(bpe(tmp_path / "t.json", ["</s>"]))
    with pytest.raises(KeyboardInterrupt), tokenizer._library("", ""):
        raise KeyboardInterrupt


def test_ids_are_below_the_vocabularys_size(tmp_path: Path) -> None:
    tokenizer = HFTokenizer(bpe(tmp_path / "t.json", ["</s>"]))
    top = max(tokenizer.encode_batch(["theme"])[0].tolist())
    tokenizer.vocab_size = top
    with pytest.raises(UserError, match=rf"t\.json makes id {top}, but its vocabulary ends at"):
        tokenizer.encode_batch(["theme"])


def test_ids_are_bounded(tmp_path: Path) -> None:
    path = words(tmp_path / "t.json", {"a": 0, "[EOS]": 2**24})
    with pytest.raises(UserError, match=r"t\.json has 2 tokens, but an id of 16777216"):
        load_tokenizer(str(path))


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        for read in (load_tokenizer, tokenizer_fingerprint):
            with pytest.raises(UserError, match=r"data\.tokenizer: cannot read"):
                read(str(path))


def test_fingerprint_without_building() -> None:
    assert tokenizer_fingerprint("byte") == ByteTokenizer.fingerprint


def test_errors_name_the_file(tmp_path: Path) -> None:
    missing, broken = tmp_path / "none.json", tmp_path / "broken.json"
    broken.write_text("{}")
    no_end = bpe(tmp_path / "no_end.json", ["<pad>"])
    with pytest.raises(UserError, match=r"data\.tokenizer: cannot read .*none\.json"):
        load_tokenizer(str(missing))
    with pytest.raises(UserError, match=r"broken\.json is not a tokenizer\.json"):
        load_tokenizer(str(broken))
    with pytest.raises(UserError, match=r"no_end\.json has no token that ends a document"):
        load_tokenizer(str(no_end))
