"""Folders of DeepSpeed, written by DeepSpeed: its own saves, and its universal checkpoints."""

import argparse
import contextlib
import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_runs import MODEL, Case, save, start, train
from ranks import run_ranks

from moelstrom import UserError
from moelstrom.moe.checkpoint.foreign import open_source
from moelstrom.moe.checkpoint.reader import Reader, latest

CASES = {
    "zero0": Case("deepspeed", 1, 0),
    "zero1": Case("deepspeed", 1, 1),
    "zero3": Case("deepspeed", 1, 3),
    "experts2": Case("deepspeed", 2, 2),
    "bf16zero0": Case("deepspeed", 1, 0, "bf16"),
    "bf16zero2": Case("deepspeed", 1, 2, "bf16"),
    "bf16experts": Case("deepspeed", 2, 1, "bf16"),
    "muon": Case("deepspeed", 1, 0, optimizer="muon"),
    "tied": Case("deepspeed", 1, 2, tied=True),
}
LOST = Case("deepspeed", 2, 0)
"""DeepSpeed does not save all experts here."""
UNIVERSAL = ("zero1", "zero3", "bf16zero2")


def write(cases: dict[str, Case], path: Path) -> None:
    """Three steps under each case, then DeepSpeed's own checkpoint and ours; collective."""
    from deepspeed.moe.layer import MoE

    for name, case in cases.items():
        engine: Any = start(case)
        train(engine, 0, 3)
        for module in engine._engine.module.modules():
            if isinstance(module, MoE):
                # Its save looks for them; our engine only borrows the layer's process groups.
                module.expert_group_name, module.num_local_experts = f"ep_size_{case.ep}", 1
        meta = {"data": {"position": 7}, "config": {}, "model": MODEL.model_dump(mode="json")}
        client = {} if case.tied else meta
        with contextlib.redirect_stdout(io.StringIO()):
            engine._engine.save_checkpoint(str(path / name / "deepspeed"), client_state=client)
        dist.barrier()
        save(engine, path / name / "ours")


def convert(path: Path) -> None:
    """DeepSpeed's own conversion to a universal checkpoint."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.checkpoint.ds_to_universal import main

    arguments = argparse.Namespace(
        input_folder=str(path / "deepspeed" / "global_step3"),
        output_folder=str(path / "universal" / "global_step3_universal"),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        main(arguments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that two ranks wrote, by the case's name."""
    path = tmp_path_factory.mktemp("deepspeed")
    run_ranks(2, write, {**CASES, "lost": LOST}, path)
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of ZeRO 1's folder to damage."""
    source = saved / "zero1" / "deepspeed" / "global_step3"
    return Path(shutil.copytree(source, tmp_path / "global_step3"))


def model_of(name: str) -> Any:
    return MODEL.model_copy(update={"tie_embeddings": name in CASES and CASES[name].tied})


def check(folder: Path, ours: Path, model: Any = None) -> None:
    """Every tensor of `folder` is our own export, bit for bit."""
    source, newest = open_source(folder, model), latest(ours)
    assert newest is not None
    reader = Reader(newest)
    assert source.tensors == reader.tensors
    assert source.step == reader.step
    for name in reader.tensors:
        assert torch.equal(source.read(name), reader.read(name)), name


@pytest.mark.parametrize("name", CASES)
def test_reads_what_deepspeed_saved(saved: Path, name: str) -> None:
    check(saved / name / "deepspeed", saved / name / "ours", model_of(name))


@pytest.mark.slow
def test_copies_of_experts_are_cut_between_their_ranks(tmp_path: Path) -> None:
    """On four ranks with ep 2 two share each expert's optimizer state."""
    run_ranks(4, write, {"both": Case("deepspeed", 2, 2)}, tmp_path)
    check(tmp_path / "both" / "deepspeed", tmp_path / "both" / "ours", MODEL)


@pytest.mark.slow
def test_padded_shards(tmp_path: Path) -> None:
    """Three ranks divide few parameters evenly."""
    cases = {"one": Case("deepspeed", 1, 1), "three": Case("deepspeed", 1, 3)}
    run_ranks(3, write, cases, tmp_path)
    for name in cases:
        check(tmp_path / name / "deepspeed", tmp_path / name / "ours", MODEL)


@pytest.mark.parametrize("name", UNIVERSAL)
def test_reads_universal_checkpoints(saved: Path, name: str) -> None:
    convert(saved / name)
    check(saved / name / "universal", saved / name / "ours", MODEL)
    shutil.rmtree(next((saved / name / "universal").glob("*/zero/model.norm.weight")))
    with pytest.raises(UserError, match=r"no model/norm\.weight"):
        open_source(saved / name / "universal", MODEL)


def test_any_range(saved: Path) -> None:
    """Ranges that cross the cuts between ranks."""
    source = open_source(saved / "bf16experts" / "deepspeed", MODEL)
    name = "adamw/exp_avg_sq/layers.0.ffn.mlp.gate_up"
    whole = source.read(name)
    for start_at in range(0, whole.numel(), 37):
        part = source.read(name, start_at, min(91, whole.numel() - start_at))
        assert torch.equal(part, whole[start_at : start_at + 91])
    with pytest.raises(UserError, match="has 800 elements"):
        source.read(name, 700, 200)
    with pytest.raises(UserError, match="no tensor"):
        source.read("model/nothing")


def test_our_record_comes_back(saved: Path) -> None:
    source = open_source(saved / "zero1" / "deepspeed")
    assert source.meta["data"] == {"position": 7}
    assert source.meta["model"] == MODEL.model_dump(mode="json")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        open_source(saved / "tied" / "deepspeed")


def test_experts_that_deepspeed_lost_are_missed(saved: Path) -> None:
    with pytest.raises(UserError, match="saves the experts of rank 0 only"):
        open_source(saved / "lost" / "deepspeed")


def test_missing_and_mixed_files_are_refused(saved: Path, copied: Path) -> None:
    second = copied / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    state = torch.load(second, weights_only=False)
    for group in state["optimizer_state_dict"]["base_optimizer_state"]["state"].values():
        group["step"].fill_(2)
    torch.save(state, second)
    with pytest.raises(UserError, match=r"files are of steps 2 and 3: files of two saves"):
        open_source(copied)
    second.unlink()
    with pytest.raises(UserError, match="no optimizer states of rank 1 of 2"):
        open_source(copied)
    shutil.copy(
        saved / "bf16zero2" / "deepspeed" / "global_step3" / f"bf16_{second.name}",
        copied / f"bf16_{second.name.replace('rank_1', 'rank_0')}",
    )
    with pytest.raises(UserError, match="a second file of rank 0"):
        open_source(copied)


def test_another_model_is_refused(saved: Path) -> None:
    for change in ({"hidden_size": 24}, {"num_layers": 1}, {"num_layers": 3}, {"num_kv_heads": 2}):
        other = MODEL.model_copy(update=change)
        for name in ("zero0", "zero1", "zero3"):
            with pytest.raises(UserError, match=r"give the config of|give its run's config"):
                open_source(saved / name / "deepspeed", other)


def test_latest_cannot_leave_its_folder(saved: Path, tmp_path: Path) -> None:
    for text in ("../zero1", "/", "", "..", "nothing"):
        (tmp_path / "latest").write_text(text)
        with pytest.raises(UserError, match=r"latest: it names .* no folder beside it"):
            open_source(tmp_path, MODEL)


class Runs:
    """A pickle that would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def test_files_that_run_code_are_refused(copied: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        kept = (copied / name).read_bytes()
        state = torch.load(copied / name, weights_only=False)
        torch.save({**state, "lr_scheduler": Runs(str(ran))}, copied / name)
        with pytest.raises(UserError, match=rf"{name}: refused: it asks for posix\.system"):
            open_source(copied)
        assert not ran.exists()
        (copied / name).write_bytes(kept)
    open_source(copied)


def test_damage_is_refused(copied: Path) -> None:
    file = copied / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    kept = file.read_bytes()
    for size in (0, 10, len(kept) // 2, len(kept) - 1):
        file.write_bytes(kept[:size])
        with pytest.raises(UserError, match=r"optim_states\.pt: (damaged|cannot be read)"):
            open_source(copied)
    file.write_bytes(kept)
    last = open_source(copied).read("adamw/exp_avg/layers.1.ffn.experts.3.down").numpy().tobytes()
    flipped = bytearray(kept)
    flipped[kept.index(last) + 9] ^= 4
    file.write_bytes(flipped)
    with pytest.raises(UserError, match=r"optim_states\.pt: .*CRC-32 of data/\d+ differs"):
        read_all(copied)


def read_all(folder: Path) -> None:
    source = open_source(folder, MODEL)
    for name in source.tensors:
        source.read(name)


def rewrite(file: Path, kept: bytes, pickled: bytes) -> None:
    """The archive `kept` with another pickle, as valid as a zip archive can be."""
    with zipfile.ZipFile(io.BytesIO(kept)) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            data = pickled if info.filename.endswith("data.pkl") else old.read(info)
            new.writestr(info.filename, data)


def test_mangled_pickles_never_crash(copied: Path) -> None:
    file = copied / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    kept = file.read_bytes()
    with zipfile.ZipFile(io.BytesIO(kept)) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        good = archive.read(name)
    rewrite(file, kept, good)
    read_all(copied)
    generator, refused = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        bad = bytearray(good)
        for at in torch.randint(len(bad), (3,), generator=generator).tolist():
            bad[at] = int(torch.randint(256, (1,), generator=generator))
        rewrite(file, kept, bytes(bad))
        try:
            read_all(copied)
        except UserError as error:
            refused += str(copied) in str(error)
    assert refused > 50
