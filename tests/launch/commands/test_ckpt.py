"""`moelstrom ckpt`: what a user sees, and exit codes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reshape_states import flip, reshaped, synthetic

from moelstrom.launch import cli
from moelstrom.moe.checkpoint import folder as disk
from moelstrom.moe.checkpoint.saver import Saver
from moelstrom.moe.config import CheckpointConfig
from moelstrom.moe.state.shard import Shard


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `moelstrom ckpt`; returns exit code, stdout and stderr."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moelstrom", "ckpt", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return command


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of one checkpoint."""
    reshaped(synthetic(tmp_path), tmp_path / "saved", dp=2)
    return tmp_path / "saved"


def test_a_dry_run_writes_nothing(run: Any, saved: Path) -> None:
    layout = ["--tp", 2, "--dp", 2, "--zero", 0, "--memory", "1MiB", "--readers", 2]
    code, out, _ = run("reshape", saved, saved.parent / "new", *layout, "--dry-run", "--json")
    facts = json.loads(out)
    assert code == 0 and not (saved.parent / "new").exists()
    assert (facts["world_size"], facts["step"], facts["readers"]) == (4, 1, 2)
    assert facts["peak_bytes"] <= 2**20 and facts["estimated_seconds"] > 0
    assert [f["rank"] for f in facts["files"]] == [0, 1]
    code, out, _ = run("reshape", saved, saved.parent / "new", *layout, "--dry-run")
    assert code == 0 and "files to write" in out and "peak bytes" in out


def test_reshape_then_diff_and_verify(run: Any, saved: Path) -> None:
    new = saved.parent / "new"
    code, out, _ = run("reshape", saved, new, "--engine", "deepspeed", "--dp", 3, "--json")
    assert code == 0 and json.loads(out)["folder"] == str(new / "step-00000001")
    code, out, _ = run("diff", saved, new / "step-00000001")
    assert code == 0 and out.startswith("equal: ")
    hashes = [json.loads(run("verify", folder, "--json")[1]) for folder in (saved, new)]
    assert hashes[0]["state_sha256"] == hashes[1]["state_sha256"]
    assert hashes[0]["sha256"] == hashes[1]["sha256"]
    code, out, _ = run("inspect", new)
    assert code == 0 and "adamw/exp_avg_sq" in out and "moelstrom" in out
    assert json.loads(run("inspect", new, "--json")[1])["files"] == 3


def test_many_differences_show_the_worst(run: Any, tmp_path: Path) -> None:
    for step, name in enumerate(("a", "b")):
        saver = Saver(CheckpointConfig(path=str(tmp_path / name), asynchronous=False), 0, 1)
        values = {f"model/w{i:02}": float(i * step) for i in range(15)} | {"adamw/x": float(step)}
        shards = [Shard(n, (1,), 0, torch.tensor([v])) for n, v in values.items()]
        saver.save(3, shards, {})
        saver.close()
    a, b = tmp_path / "a", tmp_path / "b"
    code, out, _ = run("diff", a, b)
    assert code == 1 and "15 differences: adamw 1, model 14" in out
    assert "model/w14" in out and "model/w04" not in out and "the worst 10 of 15; --all" in out
    assert "model/w01" in run("diff", a, b, "--all")[1]
    code, out, _ = run("diff", a, b, "--weights", "--all", "--json")
    names = [row["name"] for row in json.loads(out)["differences"]]
    assert code == 1 and names == [f"model/w{i:02}" for i in range(14, 0, -1)]
    code, out, _ = run("diff", a, a, "--weights")
    assert code == 0 and out == "equal weights: 15 tensors\n"


def test_different_states_exit_1(run: Any, saved: Path) -> None:
    other = synthetic(saved.parent)
    other.step = 2
    reshaped(other, saved.parent / "other", dp=1)
    code, out, _ = run("diff", saved, saved.parent / "other", "--json")
    assert code == 1 and json.loads(out)["differences"][0]["name"] == "step"
    code, out, _ = run("diff", saved, saved.parent / "other")
    assert code == 1 and "what differs" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tp", 3], "tp is 3"),
        (["--dp", 0], "layout: dp: "),
        (["--engine", "other"], "layout: engine 'other' is none of the engines"),
        (["--memory", "much"], "--memory 'much' is no size"),
        (["--memory", "1KiB"], "--memory 1024: give 196608 bytes or more"),
    ],
)
def test_a_mistake_is_one_line(run: Any, saved: Path, words: list[object], message: str) -> None:
    code, out, err = run("reshape", saved, saved.parent / "new", *words)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1
    assert not (saved.parent / "new").exists()


def test_damage_is_one_line(run: Any, saved: Path) -> None:
    file = saved / "step-00000001" / disk.shard_name(1)
    flip(file, file.stat().st_size - 50)
    for words in (["verify", saved], ["diff", saved, saved], ["reshape", saved, saved / "new"]):
        code, out, err = run(*words)
        assert code == 2 and out == "" and "rank-00001.safetensors: damaged at" in err
        assert err.strip().count("\n") == 0
    code, _, err = run("inspect", saved.parent / "nothing")
    assert code == 2 and "no such folder" in err
