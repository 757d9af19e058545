"""What `checkpoint.load` takes, and what becomes of it."""

from pathlib import Path

import pytest
import torch
from hf_models import alone

from moelstrom import UserError
from moelstrom.launch.train.resume import check_same_model, find_start, open_start
from moelstrom.moe.checkpoint.folder import shard_name, step_folder
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.replica import memory
from moelstrom.moe.checkpoint.replica.keeper import Keeper
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig, ModelConfig
from moelstrom.moe.state.shard import Shard

MODEL = ModelConfig()


def save(path: Path, step: int, *names: str, keeper: Keeper | None = None) -> Path:
    """A checkpoint of one value a name."""
    config = CheckpointConfig(path=str(path), asynchronous=False)
    saver = Saver(config, 0, 1, keeper=keeper)
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


@pytest.mark.parametrize(("field", "value"), [("num_layers", 3), ("pattern", ["attention/dense"])])
def test_any_other_value_is_another_model(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"model\.{field}: the checkpoint has "):
        check_same_model({**MODEL.model_dump(mode="json"), field: value}, MODEL)


def test_the_runs_own_checkpoint_comes_before_what_it_loads(tmp_path: Path) -> None:
    """The newest that verifies, whatever `load` names; then that; then nothing."""
    own, other = tmp_path / "own", save(tmp_path / "other", 50, "model/w", "adamw/exp_avg/w")
    config = CheckpointConfig(path=str(own), load=str(other))
    notes: list[str] = []
    with alone():
        assert find_start(CheckpointConfig(path=str(own)), MODEL, None, None, notes.append) == (
            None,
            False,
        )
        source, mine = find_start(config, MODEL, None, None, notes.append)
        assert source is not None and (source.step, mine, notes) == (50, False, [])
        for step in (3, 7):
            save(own, step, "model/w", "adamw/exp_avg/w")
        source, mine = find_start(config, MODEL, None, None, notes.append)
        assert isinstance(source, Reader) and (source.step, mine, notes) == (7, True, [])
        # Rank 0 hashed it all a moment ago: no rank does so again.
        flip(step_folder(own, 7))
        source.read("model/w")
        source, mine = find_start(config, MODEL, None, None, notes.append)
        assert source is not None and (source.step, mine) == (3, True)
        assert "step-00000007" in notes[0] and len(notes) == 1


def flip(folder: Path) -> None:
    """Damage one value of a checkpoint's shard."""
    file = folder / shard_name(0)
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)


def test_a_copy_in_memory_comes_first_unless_it_is_too_new_or_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(memory.VARIABLE, str(tmp_path / "memory"))
    config = CheckpointConfig(path=str(tmp_path / "run" / "checkpoints"))
    with alone():
        keeper = Keeper(tmp_path / "run", 0, 1)
        save(Path(config.path), 4, "model/w", "adamw/exp_avg/w", keeper=keeper)

        def found(below: int | None = None) -> tuple[int, bool]:
            source, own = find_start(config, MODEL, keeper, below, lambda text: None)
            assert source is not None and own
            return source.step, source.folder.is_relative_to(tmp_path / "memory")

        assert found() == (4, True) == found(5)
        assert found(4) == (4, False)
        save(Path(config.path), 6, "model/w", "adamw/exp_avg/w")
        assert found() == (6, False)
        keeper.close()
