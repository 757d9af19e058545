import hashlib
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moelstrom import UserError
from moelstrom.launch.data.tokenizer import ByteTokenizer, load_tokenizer, tokenizer_fingerprint


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
