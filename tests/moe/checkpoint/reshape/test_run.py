"""Reshaping: bitwise, resumable after a kill, atomic, and never from damaged data."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reshape_states import flip, plan_for, reshaped, synthetic

from moelstrom import UserError
from moelstrom.moe.checkpoint import folder as disk
from moelstrom.moe.checkpoint import tensorfile
from moelstrom.moe.checkpoint.reader import Reader, choose, verify
from moelstrom.moe.checkpoint.reshape.journal import Journal
from moelstrom.moe.checkpoint.reshape.output import OutputFolder
from moelstrom.moe.checkpoint.reshape.plan import PlanPart
from moelstrom.moe.checkpoint.reshape.run import reshape
from moelstrom.moe.state.source import Source

LAYOUTS: list[dict[str, Any]] = [
    {"dp": 1, "zero": 0},
    {"dp": 4, "ep": 2},
    {"tp": 4, "dp": 2, "pp": 3, "cp": 2, "ep": 4},
    {"engine": "deepspeed", "dp": 3, "zero": 2},
    {"engine": "megatron", "dp": 2, "tp": 2},
]


def assert_equal(a: Source, b: Source) -> None:
    assert (a.step, a.meta, a.tensors.keys()) == (b.step, b.meta, b.tensors.keys())
    for name in a.tensors:
        assert torch.equal(a.read(name).view(torch.uint8), b.read(name).view(torch.uint8)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bit_arrives(tmp_path: Path, layout: dict[str, Any]) -> None:
    source = synthetic(tmp_path)
    first = reshaped(source, tmp_path / "a", **LAYOUTS[1])
    second = reshaped(first, tmp_path / "b", **layout)
    assert_equal(source, first)
    assert_equal(source, second)
    assert choose(tmp_path / "b", print) == second.folder
    assert list((tmp_path / "b").iterdir()) == [second.folder]
    names = {disk.MANIFEST, disk.MARKER, *second.files}
    assert {file.name for file in second.folder.iterdir()} == names


def test_logical_hashes_do_not_change_with_the_layout(tmp_path: Path) -> None:
    readers = [reshaped(synthetic(tmp_path), tmp_path / "0", **LAYOUTS[0])]
    for i, layout in enumerate(LAYOUTS):
        readers.append(reshaped(readers[-1], tmp_path / f"n{i}", **layout))
    hashes = [{n: r.entry(n).logical_sha256 for n in r.tensors} for r in readers]
    assert None not in hashes[0].values()
    assert all(h == hashes[0] for h in hashes)


def test_the_plan_is_what_is_written(tmp_path: Path) -> None:
    plan = plan_for(synthetic(tmp_path), tp=2, dp=2)
    found = Reader(reshape(plan, tmp_path / "out"))
    planned = {disk.shard_name(f["rank"]): f["bytes"] for f in plan.as_json()["files"]}
    assert found.files == planned
    assert {f: (found.folder / f).stat().st_size for f in planned} == planned


def in_a_fork(work: Callable[[], object]) -> int:
    """Run `work` in a child; how it ended, as `os.waitstatus_to_exitcode` says."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(source: Source, out: Path, share: float) -> None:
    """Start the reshape of `test_a_killed_one_goes_on` and kill it when `share` is done."""

    def progress(done: int, total: int) -> None:
        if done >= share * total:
            os.kill(os.getpid(), signal.SIGKILL)

    code = in_a_fork(lambda: reshape(plan_for(source, tp=2), out, progress))
    assert code == -signal.SIGKILL


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_killed_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    source = reshaped(synthetic(tmp_path), tmp_path / "a", dp=2)
    out = tmp_path / "b"
    kill_at(source, out, share)
    assert choose(out, print) is None
    (hidden,) = out.iterdir()
    assert hidden.name.startswith(".reshape-step-00000001-")
    (hidden / "journal.jsonl").open("a").write('["torn')
    finished = Journal(hidden / "journal.jsonl").done
    assert finished
    written: set[str] = set()
    write = OutputFolder.write

    def noted(output: OutputFolder, part: PlanPart, begin: int, data: np.ndarray) -> None:
        written.add(part.slab.name)
        write(output, part, begin, data)

    monkeypatch.setattr(OutputFolder, "write", noted)
    result = reshape(plan_for(source, tp=2), out)
    assert written == source.tensors.keys() - finished.keys()
    assert_equal(source, verify(result))
    assert list(out.iterdir()) == [result]


def test_what_a_kill_left_is_hashed_before_it_is_kept(tmp_path: Path) -> None:
    source = reshaped(synthetic(tmp_path), tmp_path / "a", dp=2)
    kill_at(source, tmp_path / "b", 0.9)
    (hidden,) = (tmp_path / "b").iterdir()
    for file in (hidden / "data").iterdir():
        for position in range(1, file.stat().st_size // 2, 1000):
            flip(file, file.stat().st_size - position)
    assert_equal(source, verify(reshape(plan_for(source, tp=2), tmp_path / "b")))


def test_another_layout_does_not_take_a_killed_ones_data(tmp_path: Path) -> None:
    source = reshaped(synthetic(tmp_path), tmp_path / "a", dp=2)
    kill_at(source, tmp_path / "b", 0.5)
    assert_equal(source, verify(reshape(plan_for(source, tp=4), tmp_path / "b")))


def test_an_existing_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    source = reshaped(synthetic(tmp_path), tmp_path / "a", dp=2)
    before = {f.name: f.read_bytes() for f in source.folder.iterdir()}
    with pytest.raises(UserError, match="is there already: give another folder"):
        reshape(plan_for(source, tp=2), tmp_path / "a")
    assert {f.name: f.read_bytes() for f in source.folder.iterdir()} == before


def test_nothing_is_kept_after_a_failed_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel holds after it reads like the data, whatever reached the disk."""
    source = reshaped(synthetic(tmp_path), tmp_path / "a", dp=2)

    def refuse(handle: int) -> None:
        raise disk.FlushError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(tensorfile, "flush", refuse)
        with pytest.raises(UserError, match="Input/output error: make room there"):
            reshape(plan_for(source, tp=2), tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
    assert_equal(source, verify(reshape(plan_for(source, tp=2), tmp_path / "b")))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    plan = plan_for(reshaped(synthetic(tmp_path), tmp_path / "a", dp=2), tp=2)
    seen: list[str] = []

    def second(done: int, total: int) -> None:
        if not seen:
            with pytest.raises(UserError) as caught:
                reshape(plan, tmp_path / "b")
            seen.append(str(caught.value))

    reshape(plan, tmp_path / "b", second)
    assert "another reshape writes here" in seen[0]


@pytest.mark.parametrize("layout", [{"dp": 2}, {"tp": 2}, {"dp": 1, "zero": 0}])
def test_a_flipped_bit_is_named_and_nothing_appears(tmp_path: Path, layout: dict[str, Any]) -> None:
    """With the same pieces as the source's, with others, and with whole tensors."""
    for i, saved in enumerate(({"dp": 2}, {"tp": 4})):
        source = reshaped(synthetic(tmp_path), tmp_path / f"a{i}", **saved)
        file = source.folder / disk.shard_name(1)
        flip(file, file.stat().st_size - 100)
        with pytest.raises(UserError, match=r"rank-00001\.safetensors: damaged at '.*SHA-256"):
            reshaped(Reader(source.folder), tmp_path / f"b{i}", **layout)
        assert choose(tmp_path / f"b{i}", print) is None


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    plan = plan_for(synthetic(tmp_path), tp=2)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, 2**12))
        with pytest.raises(UserError, match="make room there or give another folder"):
            reshape(plan, tmp_path / "b")

    assert in_a_fork(work) == 0
    assert list((tmp_path / "b").iterdir()) == []
