"""What an import reads and no model of ours has comes back out; nothing is invented."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import MODELS, save
from safetensors.torch import load_file, save_file

from moelstrom.moe.checkpoint.folder import step_folder
from moelstrom.moe.checkpoint.huggingface.export import export
from moelstrom.moe.checkpoint.huggingface.load import load
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard

BIG = 1 << 40
SAID = {"max_position_embeddings": 777, "bos_token_id": 11, "eos_token_id": 12, "pad_token_id": 13}


def their_folder(folder: Path, name: str, **save_options: Any) -> None:
    """A model of transformers' own making, with settings that are not its class's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    save(MODELS[name], folder / "ours")
    export(Reader(step_folder(folder / "ours", 5)), folder / "plain", torch.float32, BIG)
    config = AutoConfig.from_pretrained(folder / "plain", attention_dropout=0.25, **SAID)
    torch.manual_seed(8)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.save_pretrained(folder / "theirs", **save_options)


@pytest.mark.parametrize("name", ["mixtral", "mixtral-tied", "olmoe", "qwen3_moe"])
def test_configs_come_back_byte_for_byte(tmp_path: Path, name: str) -> None:
    their_folder(tmp_path, name)
    made, _ = load(tmp_path / "theirs", tmp_path / "ckpt")
    export(Reader(made), tmp_path / "back", torch.float32, BIG)
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    theirs, back = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "back"))
    assert theirs.keys() == back.keys()
    assert all(torch.equal(theirs[key], back[key]) for key in theirs)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3_moe"])
def test_stacked_experts_are_read(tmp_path: Path, name: str) -> None:
    """As transformers 5 has them in memory, and writes them where it is asked not to split."""
    their_folder(tmp_path, name, save_original_format=False)
    keys = load_file(tmp_path / "theirs" / "model.safetensors").keys()
    assert "model.layers.2.mlp.experts.gate_up_proj" in keys or name == "qwen3_moe"
    assert not any(".experts.0." in key for key in keys)
    made, _ = load(tmp_path / "theirs", tmp_path / "ckpt")
    export(Reader(made), tmp_path / "back", torch.float32, BIG)
    from transformers import AutoModelForCausalLM

    theirs, back = (
        AutoModelForCausalLM.from_pretrained(tmp_path / f, dtype=torch.float32).state_dict()
        for f in ("theirs", "back")
    )
    assert theirs.keys() == back.keys()
    assert all(torch.equal(theirs[key], back[key]) for key in theirs)


def test_a_stack_of_another_shape_is_refused(tmp_path: Path) -> None:
    from moelstrom import UserError

    their_folder(tmp_path, "olmoe", save_original_format=False)
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    key = "model.layers.1.mlp.experts.down_proj"
    save_file({**tensors, key: tensors[key].transpose(1, 2).contiguous()}, file)
    with pytest.raises(UserError, match=rf"'{key}' is torch.float32 \[4, 16, 32\], but .*32, 16"):
        load(tmp_path / "theirs", tmp_path / "ckpt")


def changed(folder: Path, path: Path, **fields: Any) -> Reader:
    """The checkpoint `folder` as a run saves it that trained with other fields of the model."""
    reader = Reader(folder)
    meta = {**reader.meta, "model": {**reader.meta["model"], **fields}}
    saver = Saver(CheckpointConfig(path=str(path), asynchronous=False), 0, 1)
    shards = [Shard(n, i.shape, 0, reader.read(n)) for n, i in reader.tensors.items()]
    saver.save(9, shards, {**meta, "config": {"data": {"seq_len": 4000}}})
    saver.close()
    return Reader(step_folder(path, 9))


def test_a_changed_model_keeps_the_rest(tmp_path: Path) -> None:
    """Longer sequences and another RoPE base are said; tokens and dropout stay."""
    their_folder(tmp_path, "olmoe")
    made, _ = load(tmp_path / "theirs", tmp_path / "ckpt")
    export(
        changed(made, tmp_path / "later", rope_theta=5e6), tmp_path / "back", torch.bfloat16, BIG
    )
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 5e6 and config["dtype"] == "bfloat16"
    assert {k: config[k] for k in SAID} == {**SAID, "max_position_embeddings": 4000}
    assert config["attention_dropout"] == 0.25


def test_another_tokenizer_brings_its_own_tokens(tmp_path: Path) -> None:
    their_folder(tmp_path, "mixtral")
    made, _ = load(tmp_path / "theirs", tmp_path / "ckpt")
    export(Reader(made), tmp_path / "back", torch.float32, BIG, eos=95)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert [config[k] for k in SAID] == [777, None, 95, None]
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation == {"_from_model_config": True, "eos_token_id": 95}


def test_nothing_is_invented(tmp_path: Path) -> None:
    """A run's own model: the length that it trained on, and no token that nobody named."""
    save(MODELS["mixtral"], tmp_path / "ours")
    source = Reader(step_folder(tmp_path / "ours", 5))
    export(source, tmp_path / "hf", torch.float32, BIG)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert [config[k] for k in SAID] == [24, None, None, None]
    assert not (tmp_path / "hf" / "generation_config.json").exists()
    source.meta["config"].clear()
    export(source, tmp_path / "unsaid", torch.float32, BIG)
    assert "max_position" not in (tmp_path / "unsaid" / "config.json").read_text()
