"""transformers computes what our model does, from the folder that we write."""

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import torch
from hf_models import MODELS, TOKENS, read_logits, save, small
from safetensors import safe_open

from moelstrom import UserError
from moelstrom.moe.checkpoint.folder import step_folder
from moelstrom.moe.checkpoint.huggingface import export as module
from moelstrom.moe.checkpoint.huggingface.architectures import choose
from moelstrom.moe.checkpoint.huggingface.export import INDEX, export
from moelstrom.moe.checkpoint.huggingface.load import load
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig, ModelConfig, MoEConfig
from moelstrom.moe.state.shard import Shard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BIG = 1 << 40


def exported(model: ModelConfig, tmp_path: Path, max_shard: int = BIG) -> torch.Tensor:
    """Our logits; the export lies in tmp_path/hf."""
    ours = save(model, tmp_path / "ours")
    export(source(tmp_path), tmp_path / "hf", torch.float32, max_shard, eos=95)
    return ours


def source(tmp_path: Path) -> Reader:
    return Reader(step_folder(tmp_path / "ours", 5))


def their_model(folder: Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model, info = cast("tuple[PreTrainedModel, dict[str, object]]", loaded)
    assert not any(info.values()), info
    assert model.generation_config.eos_token_id == 95
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' logits of our export, and the imports of it and of what transformers saves,
    bit for bit."""
    monkeypatch.setattr(module, "CHUNK", 100)
    monkeypatch.setattr("moelstrom.moe.checkpoint.huggingface.weights.CHUNK", 100)
    ours = exported(MODELS[name], tmp_path, max_shard=40_000)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    model = their_model(tmp_path / "hf")
    with torch.no_grad():
        theirs = model(TOKENS).logits
    assert ours.abs().max() > 1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)

    model.save_pretrained(tmp_path / "theirs")
    for folder in ("hf", "theirs"):
        check_import(tmp_path, MODELS[name], ours, folder)


def check_import(tmp_path: Path, config: ModelConfig, ours: torch.Tensor, folder: str) -> None:
    made, model = load(tmp_path / folder, tmp_path / f"{folder}-back")
    # The widths of layers that the model does not have, and the losses' weights, are not theirs.
    assert model.model_copy(update={"ffn_size": 40, "moe": config.moe}) == config
    assert model.moe.normalize_top_k == config.moe.normalize_top_k
    before, after = source(tmp_path), Reader(made)
    assert after.step == 0
    assert set(after.tensors) == {n for n in before.tensors if n.startswith("model/")}
    for tensor, info in after.tensors.items():
        assert info == before.tensors[tensor]
        assert torch.equal(before.read(tensor), after.read(tensor)), tensor
    assert torch.equal(read_logits(made), ours)


def test_bf16_rounds_once_and_files_keep_their_limit(tmp_path: Path) -> None:
    save(MODELS["olmoe"], tmp_path / "ours")
    told: list[tuple[int, int]] = []
    done = export(
        source(tmp_path),
        tmp_path / "hf",
        torch.bfloat16,
        9000,
        texts={"tokenizer.json": b"{}"},
        progress=lambda at, total: told.append((at, total)),
    )
    assert told[-1] == (2 * done.parameters, 2 * done.parameters)
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == b"{}"
    places = json.loads((tmp_path / "hf" / INDEX).read_text())["weight_map"]
    assert sum(done.files.values()) == sum(
        f.stat().st_size for f in (tmp_path / "hf").glob("*.safetensors")
    )
    for file, size in done.files.items():
        with safe_open(tmp_path / "hf" / file, framework="pt") as opened:
            keys = list(opened.keys())
            assert {places[key] for key in keys} == {file}
            assert sum(opened.get_tensor(key).nbytes for key in keys) <= 9000
            assert size > 0
    key = "model.layers.1.mlp.experts.2.up_proj.weight"
    with safe_open(tmp_path / "hf" / places[key], framework="pt") as opened:
        got = opened.get_tensor(key)
    both = source(tmp_path).read("model/layers.1.ffn.experts.2.gate_up").view(32, 32)
    assert torch.equal(got, both[16:].bfloat16())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"moe": {"score": "sigmoid"}}, "model.moe.score"),
        ({"moe": {"shared_expert_size": 8}}, "model.moe.shared_expert_size"),
        ({"moe": {"normalize_top_k": False}}, "model.moe.normalize_top_k"),
        ({"rope_fraction": 0.5}, "model.rope_fraction"),
        ({"pattern": ("attention/dense", "attention/moe")}, "model.pattern"),
        ({"qk_norm": "whole", "head_dim": 16}, "model.head_dim"),
        ({"qk_norm": "whole", "pattern": ("attention/dense",)}, "model.pattern"),
    ],
)
def test_a_model_that_no_class_computes_is_refused(fields: dict, named: str) -> None:
    with pytest.raises(UserError, match=f"^{named}: .*can be exported"):
        choose(small(**fields))


def test_a_balancing_bias_is_refused(tmp_path: Path) -> None:
    save(MODELS["mixtral"], tmp_path / "ours", bias=0.25)
    with pytest.raises(UserError, match=r"model\.moe\.bias_update_rate: .*router.bias is not zero"):
        export(source(tmp_path), tmp_path / "hf", torch.float32, BIG)
    assert not (tmp_path / "hf").exists()


def test_a_full_folder_a_full_disk_and_damage_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(MODELS["mixtral"], tmp_path / "ours")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="full: exists already"):
        export(source(tmp_path), tmp_path / "full", torch.float32, BIG)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        with pytest.raises(UserError, match="hf: No space left on device; give"):
            export(source(tmp_path), tmp_path / "hf", torch.float32, BIG)
    shard = step_folder(tmp_path / "ours", 5) / "rank-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 4 :: 64] = bytes(len(data[len(data) // 4 :: 64]))
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"rank-00000\.safetensors: damaged"):
        export(source(tmp_path), tmp_path / "hf", torch.float32, BIG)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["full", "ours"]


def test_a_checkpoint_without_its_model_is_refused(tmp_path: Path) -> None:
    saver = Saver(CheckpointConfig(path=str(tmp_path / "ours")), 0, 1)
    saver.save(5, [Shard("model/w", (1,), 0, torch.ones(1))], {})
    saver.close()
    with pytest.raises(UserError, match="its meta has no `model`"):
        export(source(tmp_path), tmp_path / "hf", torch.float32, BIG)


def test_sizes_count_the_whole_norm() -> None:
    from moelstrom.moe.sizing.counts import count_parameters

    model = MODELS["olmoe"]
    heads = count_parameters(model.model_copy(update={"qk_norm": True})).total
    assert count_parameters(model).total - heads == 3 * ((32 + 16) - 2 * 8)
    assert ModelConfig(qk_norm="whole", moe=MoEConfig()).qk_norm == "whole"
