"""Folders of torch.distributed.checkpoint, written by torch itself."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from engine_runs import MODEL
from ranks import run_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from moelstrom import UserError
from moelstrom.moe.build import build_model
from moelstrom.moe.checkpoint.foreign import open_source
from moelstrom.moe.config import LayoutConfig
from moelstrom.moe.grid import Grid
from moelstrom.moe.state.names import Local

State = dict[str, torch.Tensor]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def canonical(local: Local, kind: str, value: torch.Tensor) -> State:
    flat = whole(value).view(-1)
    return {
        f"{kind}/{t.name}": flat[t.start : t.start + t.numel].view(t.shape)
        for t in local.logicals()
    }


def trained(shards: bool) -> tuple[nn.Module, torch.optim.Optimizer, State]:
    """A model three noisy AdamW steps on, and its state under canonical names."""
    world = dist.get_world_size()
    built = build_model(MODEL, Grid(LayoutConfig(dp=world)), seed=1)
    plain = {local.name: local for local, _ in built.parameters_here()}
    model: nn.Module = built
    if shards:
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(dist.get_rank() if shards else 0)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
            local = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
            local.normal_(generator=generator)
        optimizer.step()
    for buffer in model.buffers():
        buffer.copy_(torch.arange(buffer.numel()))
    state = {f"model/{name}": b.clone() for name, b in model.named_buffers()}
    for name, p in model.named_parameters():
        state |= canonical(plain[name], "model", p)
        for kind in ("exp_avg", "exp_avg_sq"):
            state |= canonical(plain[name], f"adamw/{kind}", optimizer.state[p][kind])
    return model, optimizer, state


def write(path: Path) -> dict[str, State]:
    """FSDP's shards in `fsdp`, their weights alone in `weights`, whole tensors in `plain`."""
    model, optimizer, sharded = trained(True)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": moments, "note": "kept"}, checkpoint_id=path / "fsdp")
    dcp.save({"model": weights}, checkpoint_id=path / "weights")
    model, optimizer, plain = trained(False)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": moments}, checkpoint_id=path / "plain")
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": moments}, checkpoint_id=path / "later")
    return {"fsdp": sharded, "plain": plain}


def check(folder: Path, expected: State) -> None:
    source = open_source(folder, MODEL)
    assert source.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert source.tensors[name].shape == value.shape
        assert torch.equal(source.read(name), value.reshape(-1)), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, State]]:
    """Folders that two ranks wrote, and what is in them."""
    path = tmp_path_factory.mktemp("dcp")
    return path, run_ranks(2, write, path)[0]


@pytest.fixture
def copied(saved: tuple[Path, dict[str, State]], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved[0] / "fsdp", tmp_path / "dcp"))


@pytest.mark.parametrize("kind", ["fsdp", "plain"])
def test_reads_what_torch_wrote(saved: tuple[Path, dict[str, State]], kind: str) -> None:
    path, states = saved
    check(path / kind, states[kind])
    assert open_source(path / kind, MODEL).step == 3
    assert open_source(path / kind, MODEL).meta["model"] == MODEL.model_dump(mode="json")


def test_weights_alone_are_a_checkpoint(saved: tuple[Path, dict[str, State]]) -> None:
    path, states = saved
    check(path / "weights", {k: v for k, v in states["fsdp"].items() if k.startswith("model/")})


def test_config_beside_the_run(saved: tuple[Path, dict[str, State]], tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints" / "step"
    shutil.copytree(saved[0] / "fsdp", folder)
    with pytest.raises(UserError, match=r"no config\.yaml beside or above .*--model"):
        open_source(folder)
    unsized = MODEL.model_copy(update={"vocab_size": 0})
    (tmp_path / "run" / "config.yaml").write_text(f"model: {unsized.model_dump_json()}\n")
    assert open_source(folder).meta["model"]["vocab_size"] == MODEL.vocab_size


def test_another_model_is_refused(saved: tuple[Path, dict[str, State]]) -> None:
    wider = MODEL.model_copy(update={"ffn_size": 26})
    with pytest.raises(UserError, match=r"gate_up is \[50, 16\], but .* has \[52, 16\]"):
        open_source(saved[0] / "fsdp", wider)
    deeper = MODEL.model_copy(update={"num_layers": 3})
    with pytest.raises(UserError, match=r"no model/layers\.2\..*missing"):
        open_source(saved[0] / "fsdp", deeper)


class Runs:
    """A pickle that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def read_all(folder: Path) -> None:
    source = open_source(folder, MODEL)
    for name in source.tensors:
        source.read(name)


def test_metadata_that_runs_code_is_refused(copied: Path) -> None:
    for payload in (Runs(copied / "ran"), {"a": [Runs(copied / "ran")]}):
        (copied / ".metadata").write_bytes(pickle.dumps(payload))
        with pytest.raises(UserError, match=r"\.metadata: refused: it asks for .*touch"):
            open_source(copied, MODEL)
        assert not (copied / "ran").exists()


def test_item_that_runs_code_is_refused(copied: Path, tmp_path: Path) -> None:
    file = copied / "__0_0.distcp"
    torch.save((Runs(copied / "ran"), torch.zeros(4096)), tmp_path / "hostile")
    hostile = (tmp_path / "hostile").read_bytes()
    metadata = pickle.loads((copied / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path, info.offset, info.length = file.name, 0, len(hostile)
    (copied / ".metadata").write_bytes(pickle.dumps(metadata))
    file.write_bytes(hostile)
    with pytest.raises(UserError, match="distcp: refused: it asks for"):
        read_all(copied)
    assert not (copied / "ran").exists()


def edit(folder: Path, change: Any) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_files_outside_the_folder_are_refused(
    saved: tuple[Path, dict[str, State]], copied: Path
) -> None:
    for name in ("../dcp/__0_0.distcp", "/etc/passwd", ".hidden", 7):

        def move(metadata: Any, name: Any = name) -> None:
            next(iter(metadata.storage_data.values())).relative_path = name

        edit(copied, move)
        with pytest.raises(UserError, match="outside its folder"):
            open_source(copied, MODEL)
    shutil.copy(saved[0] / "fsdp" / ".metadata", copied / ".metadata")
    (copied / "__0_0.distcp").rename(copied.parent / "elsewhere")
    (copied / "__0_0.distcp").symlink_to(copied.parent / "elsewhere")
    with pytest.raises(UserError, match="symlink"):
        read_all(copied)


def loaded_by_torch(folder: Path) -> torch.Tensor:
    """The embedding that torch's own reader gives, without a word."""
    state = {"model": {"embedding": torch.zeros(MODEL.vocab_size, MODEL.hidden_size)}}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state["model"]["embedding"]


def test_files_of_two_saves_are_refused(
    saved: tuple[Path, dict[str, State]], tmp_path: Path
) -> None:
    """By the steps that both ranks' files hold. FSDP's shards cannot show it: the format has
    nothing else that names a save, and one rank writes all steps."""
    folder = Path(shutil.copytree(saved[0] / "plain", tmp_path / "dcp"))
    shutil.copy(saved[0] / "later" / "__1_0.distcp", folder)
    with pytest.raises(UserError, match="its files are of steps 3 and 4: files of two saves"):
        open_source(folder, MODEL)
    loaded_by_torch(folder)


def test_damage_is_refused(copied: Path) -> None:
    kept = loaded_by_torch(copied)
    file = copied / "__1_0.distcp"
    whole_file = file.read_bytes()
    source = open_source(copied, MODEL)
    data = source.read("model/embedding").numpy().tobytes()[-64:]
    flipped = bytearray(whole_file)
    flipped[whole_file.index(data)] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(UserError, match=r"__1_0\.distcp: .*CRC-32 .* differs"):
        read_all(copied)
    assert not torch.equal(loaded_by_torch(copied), kept), "torch notices it: say so no more"
    file.write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(UserError, match=r"__1_0\.distcp: cannot be read .*truncated"):
        read_all(copied)
    file.unlink()
    with pytest.raises(UserError, match=r"__1_0\.distcp: cannot be read .*No such file"):
        read_all(copied)
    (copied / ".metadata").write_bytes((copied / ".metadata").read_bytes()[:-200])
    with pytest.raises(UserError, match=r"\.metadata: refused: not a whole pickle"):
        open_source(copied, MODEL)


def test_mangled_metadata_never_crashes(copied: Path) -> None:
    good = (copied / ".metadata").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        bad = bytearray(good)
        for at in torch.randint(len(bad), (3,), generator=generator).tolist():
            bad[at] = int(torch.randint(256, (1,), generator=generator))
        (copied / ".metadata").write_bytes(bad)
        try:
            read_all(copied)
        except UserError as error:
            assert str(copied) in str(error)
