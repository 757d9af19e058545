"""The Hugging Face commands, and a run that starts from imported weights."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
import yaml
from hf_models import MODELS, save
from launch_runs import final_state, make_dataset, run_worker
from typer.testing import CliRunner

from moelstrom import UserError
from moelstrom.launch.cli import app
from moelstrom.launch.train.log import select
from moelstrom.launch.train.records import StepRecord
from moelstrom.moe.checkpoint.reader import Reader


def run(*arguments: object) -> str:
    """Standard output; UserError passes through."""
    result = CliRunner().invoke(app, ["ckpt", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        run(*arguments)
    return str(caught.value)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    save(MODELS["qwen3_moe"].model_copy(update={"vocab_size": 320}), tmp_path / "ours")
    return tmp_path / "ours"


def test_export_says_what_it_wrote(ours: Path, tmp_path: Path) -> None:
    facts = json.loads(run("export-hf", ours, tmp_path / "hf", "--max-shard", "20KiB", "--json"))
    assert facts["class"] == "Qwen3MoeForCausalLM" and facts["dtype"] == "bf16"
    files = list((tmp_path / "hf").glob("*.safetensors"))
    assert facts["files"] == len(files) > 1
    assert facts["bytes"] == sum(file.stat().st_size for file in files)
    assert not facts["tokenizer"]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["eos_token_id"] == 256 and config["max_position_embeddings"] == 24
    assert "Qwen3MoeForCausalLM" in run("export-hf", ours / "step-00000005", tmp_path / "again")


def test_a_tokenizer_goes_along(ours: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words = {"a": 0, "b": 1, "</s>": 2, "[UNK]": 3}
    model = tokenizers.models.WordLevel(words, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "words.json"))
    run("export-hf", ours, tmp_path / "hf", "--tokenizer", tmp_path / "words.json")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert loaded("b a")["input_ids"] == [1, 0] and loaded.eos_token_id == 2
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_mistakes_name_their_option(ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    assert refused("export-hf", ours, out, "--dtype", "fp8").startswith("--dtype fp8: give bf16")
    assert refused("export-hf", ours, out, "--max-shard", "5X").startswith("--max-shard '5X'")
    assert "--max-shard 0" in refused("export-hf", ours, out, "--max-shard", "0")
    assert "--tokenizer" in refused("export-hf", ours, out, "--tokenizer", tmp_path / "none.json")
    assert "no checkpoint of a known format" in refused("export-hf", tmp_path, out)
    assert "config.json" in refused("import-hf", tmp_path, out)
    assert not out.exists()


@pytest.mark.parametrize("engine", ["native", "deepspeed"])
def test_a_run_starts_from_imported_weights(ours: Path, tmp_path: Path, engine: str) -> None:
    """Two steps that hardly move from the imported weights, with an optimizer that was empty."""
    run("export-hf", ours, tmp_path / "hf", "--dtype", "fp32")
    config, checkpoints = tmp_path / "run.yaml", tmp_path / "my run" / "checkpoints"
    run("import-hf", tmp_path / "hf", checkpoints, "--write", config)
    values = yaml.safe_load(config.read_text())
    assert values["name"] == "my_run"
    values |= {"steps": 2, "output": str(tmp_path / values["name"]), "engine": {"name": engine}}
    values["data"] = {
        "path": str(make_dataset(tmp_path)),
        "seq_len": 32,
        "micro_batch_size": 2,
        "global_batch_size": 4,
    }
    values["optimizer"] = {"lr": 1e-9, "weight_decay": 0.0}
    config.write_text(yaml.safe_dump(values))
    ran = run_worker(config)
    assert ran.returncode == 0, ran.stderr
    assert [r.step for r in select(tmp_path / "my_run", StepRecord)] == [1, 2]
    state, start = final_state(tmp_path / "my run", 2), final_state(tmp_path / "my run", 0)
    for name, values in start.items():
        torch.testing.assert_close(state[name], values, rtol=0, atol=1e-7)
    assert any(name.startswith("adamw/exp_avg/") and state[name].any() for name in state)
    metas = [Reader(checkpoints / f"step-{step:08d}").meta for step in (0, 2)]
    assert metas[0]["hf"] == metas[1]["hf"], "settings that the import kept are lost"
    assert metas[0]["hf"]["config"]["model_type"] == "qwen3_moe"


def test_a_tokenizer_and_settings_go_through(ours: Path, tmp_path: Path) -> None:
    """Every file that transformers made comes back as it was."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    run("export-hf", ours, tmp_path / "plain", "--dtype", "fp32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", bos_token_id=5, pad_token_id=6)
    model.save_pretrained(tmp_path / "hf")
    words = {"a": 0, "b": 1, "</s>": 2, "[UNK]": 3, "[P]": 6}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="[P]")
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(tmp_path / "hf")

    checkpoints = tmp_path / "checkpoints"
    run("import-hf", tmp_path / "hf", checkpoints)
    run("export-hf", checkpoints, tmp_path / "back", "--dtype", "fp32")
    files = {f.name for f in (tmp_path / "hf").iterdir()}
    assert "chat_template.jinja" in files and "tokenizer_config.json" in files
    assert files == {f.name for f in (tmp_path / "back").iterdir()}
    for name in files - {"model.safetensors"}:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), (
            name
        )
    (tmp_path / "hf" / "tokenizer.json").unlink()
    assert "--tokenizer" in refused("export-hf", checkpoints, tmp_path / "again")
