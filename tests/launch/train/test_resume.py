"""What `checkpoint.load` takes, and what becomes of it."""

from pathlib import Path

import pytest
import torch

from moelstrom import UserError
from moelstrom.launch.train.resume import check_same_model, open_start
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig, ModelConfig
from moelstrom.moe.state.shard import Shard

MODEL = ModelConfig()


def save(path: Path, step: int, *names: str) -> Path:
    """A checkpoint of one value a name."""
    saver = Saver(CheckpointConfig(path=str(path), asynchronous=False), 0, 1)
    meta = {"data": {"samples": 1}, "model": MODEL.model_dump(mode="json"), "skipped": 2}
    saver.save(step, [Shard(name, (1,), 0, torch.tensor([float(step)])) for name in names], meta)
    saver.close()
    return path


def test_a_whole_state_goes_on_from_its_step(tmp_path: Path) -> None:
    save(tmp_path, 3, "model/w", "adamw/exp_avg/w")
    save(tmp_path, 7, "model/w", "adamw/exp_avg/w")
    source = open_start(str(tmp_path), MODEL)
    assert source.step == 7 and source.meta["skipped"] == 2
    one = open_start(str(tmp_path / "step-00000003"), MODEL)
    assert one.step == 3 and one.read("adamw/exp_avg/w").tolist() == [3.0]


def test_weights_alone_are_the_start_of_step_0(tmp_path: Path) -> None:
    source = open_start(str(save(tmp_path, 7, "model/w")), MODEL)
    assert source.step == 0 and set(source.meta) == {"model"}
    assert source.read("model/w").tolist() == [7.0] and list(source.tensors) == ["model/w"]


@pytest.mark.parametrize("name", ["none", "empty"])
def test_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"checkpoint\.load: .*{name}: no .*: give "):
        open_start(str(tmp_path / name), MODEL)


def test_another_model_is_named() -> None:
    check_same_model(None, MODEL)
    saved = MODEL.model_dump(mode="json")
    check_same_model(saved, MODEL)
    with pytest.raises(UserError, match=r"model\.num_layers: the checkpoint has 9, this run 4"):
        check_same_model({**saved, "num_layers": 9}, MODEL)
