"""Importing refuses everything that is damaged, dangerous or another model."""

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hf_models import MODELS, save
from safetensors.torch import load_file, save_file

from moelstrom import UserError
from moelstrom.moe.checkpoint.folder import step_folder
from moelstrom.moe.checkpoint.huggingface.architectures import (
    OLMOE,
    QWEN3_MOE,
    from_config,
    to_config,
)
from moelstrom.moe.checkpoint.huggingface.export import INDEX, export
from moelstrom.moe.checkpoint.huggingface.load import load
from moelstrom.moe.checkpoint.reader import Reader, verify

KEY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the Mixtral-shaped model in several files."""
    path = tmp_path_factory.mktemp("good")
    save(MODELS["mixtral"], path / "ours")
    export(Reader(step_folder(path / "ours", 5)), path / "hf", torch.float32, 40_000)
    return path / "hf"


def edit_config(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return edit


def edit_place(file: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][KEY] = file
        (folder / INDEX).write_text(json.dumps(index))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(first(folder))
        change(tensors)
        save_file(tensors, first(folder))

    return edit


def first(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def truncate(folder: Path) -> None:
    first(folder).write_bytes(first(folder).read_bytes()[:-9])


def pickled(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def disguised(folder: Path) -> None:
    torch.save({KEY: torch.ones(2)}, first(folder))


def drop_file(folder: Path) -> None:
    first(folder).unlink()


def twice(folder: Path) -> None:
    shutil.copy(first(folder), max(folder.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"model-00001-of-\d+.safetensors: no whole safetensors file"),
        (drop_file, r"model-00001-of-\d+.safetensors: no whole safetensors file"),
        (disguised, r"model-00001-of-\d+.safetensors: no whole safetensors file"),
        (twice, r"'.*' lies in model-00001-of-\d+.safetensors too"),
        (pickled, r"no model.safetensors; pytorch_model.bin is a pickle"),
        (edit_place("../other.safetensors"), r"index.json: weight_map has the file '../other"),
        (edit_place("model.bin"), r"index.json: weight_map has the file 'model.bin'"),
        (edit_place(7), r"index.json: weight_map has the file 7"),
        (edit_tensors(lambda t: t.pop(KEY)), rf"tensor '{KEY}' is missing:"),
        (
            edit_tensors(lambda t: t.update({"model.layers.0.bias": torch.ones(2)})),
            "tensor 'model.layers.0.bias' has no place in the model",
        ),
        (
            edit_tensors(lambda t: t.update({KEY: torch.ones(3)})),
            rf"'{KEY}' is torch.float32 \[3\], but",
        ),
        (
            edit_tensors(lambda t: t.update({KEY: t[KEY].long()})),
            rf"'{KEY}' is torch.int64 \[64, 32\], but",
        ),
        (edit_config(model_type="llama"), "config.json: model_type is 'llama'; give a model of"),
        (edit_config(hidden_size=20), "config.json: .*hidden_size is 20"),
        (edit_config(hidden_act="gelu"), "config.json: hidden_act is 'gelu'; only"),
        (edit_config(sliding_window=64), "config.json: sliding_window is 64; only"),
        (edit_config(rope_parameters={"rope_type": "yarn"}), "rope_type is 'yarn'; only"),
        (edit_config(quantization_config={}), "quantization_config is {}; only"),
        (edit_config(vocab_size=None), "config.json: vocab_size: .*integer, not None"),
        (edit_config(num_attention_heads="x"), "config.json: "),
        (edit_config(num_hidden_layers=-1), "config.json: .*num_layers"),
        (edit_config(num_hidden_layers=1 << 40), "num_hidden_layers is 1099511627776, above"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json: not a JSON object"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda f: (f / "config.json").unlink(), "config.json: No such file"),
    ],
)
def test_a_spoilt_folder_is_refused(
    good: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(good, folder)
    load(folder, tmp_path / "before")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder, tmp_path / "back")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists() or not list((tmp_path / "back").iterdir())


def lose(number: float, key: str = KEY, count: int = 3) -> Callable[[Path], None]:
    return edit_tensors(lambda t: t[key].view(-1)[5 : 5 + count].fill_(number))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(good: Path, tmp_path: Path, number: float) -> None:
    shutil.copytree(good, tmp_path / "hf")
    lose(number)(tmp_path / "hf")
    says = rf"00001-of-\d+.safetensors: '{KEY}' has 3 of 2048 values that are NaN or infinite"
    with pytest.raises(UserError, match=says):
        load(tmp_path / "hf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_tied_head_may_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values, in another file; differing ones are refused by name."""
    monkeypatch.setattr("moelstrom.moe.checkpoint.huggingface.weights.CHUNK", 100)
    save(MODELS["mixtral-tied"], tmp_path / "ours")
    folder = tmp_path / "hf"
    export(Reader(step_folder(tmp_path / "ours", 5)), folder, torch.float32, 1 << 30)
    single = folder / "model.safetensors"
    plain = load(folder, tmp_path / "plain")[0]
    tensors = load_file(single)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, single)
    repeated = load(folder, tmp_path / "repeated")[0]
    for name in Reader(plain).tensors:
        assert torch.equal(Reader(plain).read(name), Reader(repeated).read(name))
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, single)
    with pytest.raises(UserError, match=r"'lm_head.weight' differs from 'model.embed_tokens"):
        load(folder, tmp_path / "differs")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][1:].clone()
    save_file(tensors, single)
    with pytest.raises(UserError, match=r"'lm_head.weight' is torch.float32 \[95, 32\], but"):
        load(folder, tmp_path / "differs")


def test_a_step_0_stays_and_a_full_disk_leaves_nothing(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = load(good, tmp_path / "back")
    verify(folder)
    with pytest.raises(UserError, match="step-00000000: exists already"):
        load(good, tmp_path / "back")
    verify(folder)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(UserError, match="other: No space left on device"):
        load(good, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_half_precision_becomes_fp32(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "hf")
    for file in (tmp_path / "hf").glob("*.safetensors"):
        save_file({k: t.bfloat16() for k, t in load_file(file).items()}, file)
    folder, _ = load(tmp_path / "hf", tmp_path / "back")
    half, whole = Reader(folder), Reader(step_folder(good.parent / "ours", 5))
    for name in half.tensors:
        assert torch.equal(half.read(name), whole.read(name).bfloat16().float())


def test_the_published_configs_are_read() -> None:
    """Fields as OLMoE-1B-7B and Qwen3-30B-A3B have them, and Qwen's two ways to place dense
    layers."""
    olmoe = {
        "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "vocab_size": 50304,
        "clip_qkv": None, "attention_bias": False, "tie_word_embeddings": False,
    }  # fmt: skip
    found, model = from_config(olmoe, "config.json")
    assert found is OLMOE and model.head_dim == 128 and model.qk_norm == "whole"
    assert not model.moe.normalize_top_k and model.moe.expert_size == 1024

    qwen = to_config(MODELS["qwen3_moe"], QWEN3_MOE, "bfloat16")
    assert from_config(qwen, "config.json")[1].pattern == ("attention/dense", "attention/moe")
    qwen |= {"decoder_sparse_step": 2, "mlp_only_layers": [1], "num_hidden_layers": 5}
    kinds = from_config(qwen, "config.json")[1].pattern
    assert [kind.endswith("moe") for kind in kinds] == [False, False, False, True]
