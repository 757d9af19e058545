"""Reading any range back, and refusing everything that is damaged."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.moe.checkpoint.commit import Commit
from moelstrom.moe.checkpoint.folder import marker_text, shard_name, step_folder, temporary_folder
from moelstrom.moe.checkpoint.lease import take
from moelstrom.moe.checkpoint.manifest import DTYPES
from moelstrom.moe.checkpoint.reader import Reader, choose, complete, latest, verify
from moelstrom.moe.checkpoint.retention import Retention
from moelstrom.moe.checkpoint.snapshot import HostBuffers, Snapshot
from moelstrom.moe.checkpoint.writer import write_shards
from moelstrom.moe.state.shard import Shard

NONCE = "0123456789abcdef"


def write(path: Path, step: int, ranks: list[list[Shard]], keep: int = 100) -> Path:
    """A checkpoint of simulated ranks."""
    folder = temporary_folder(path, step, NONCE)
    folder.mkdir(parents=True)
    reports = []
    for rank, shards in enumerate(ranks):
        snapshot = Snapshot(HostBuffers())
        snapshot.add(shards)
        report = write_shards(folder / shard_name(rank), snapshot)
        reports.append(json.dumps({"step": step, **report}).encode())
    lease = take(path, "saves", "checkpoint.path")
    meta, retention = '{"tokens": 5}', Retention(keep)
    Commit(path, step, NONCE, meta, lease, retention, lambda text: None).run(reports)
    lease.release()
    return step_folder(path, step)


def halves(value: int) -> list[list[Shard]]:
    """Two ranks that hold [0, 60) and [60, 100) of `w`."""
    data = torch.arange(100, dtype=torch.float32) + value
    return [
        [Shard("w", (10, 10), 0, data[:60])],
        [Shard("w", (10, 10), 60, data[60:])],
    ]


def bits(data: torch.Tensor) -> bytes:
    return data.contiguous().view(torch.uint8).numpy().tobytes()


def random_bits(dtype: torch.dtype, numel: int) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.randint(2, (numel,)).bool()
    return torch.randint(256, (numel * dtype.itemsize,), dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)])
def test_roundtrip_of_every_dtype_is_bitwise(tmp_path: Path, shape: tuple[int, ...]) -> None:
    numel = torch.Size(shape).numel()
    data = {name: random_bits(dtype, numel) for name, dtype in DTYPES.items()}
    reader = Reader(write(tmp_path, 3, [[Shard(n, shape, 0, d) for n, d in data.items()]]))
    assert (reader.step, reader.meta) == (3, {"tokens": 5})
    for name, dtype in DTYPES.items():
        assert (reader.tensors[name].dtype, reader.tensors[name].shape) == (dtype, shape)
        assert reader.read(name).dtype == dtype and bits(reader.read(name)) == bits(data[name])


@st.composite
def splits(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], list[list[Shard]]]:
    """Some logical tensors, and their random pieces among up to four ranks."""
    world = draw(st.integers(1, 4))
    ranks: list[list[Shard]] = [[] for _ in range(world)]
    tensors = {}
    for index in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))
        rows, columns = draw(st.integers(0, 9)), draw(st.integers(1, 9))
        data = random_bits(dtype, rows * columns)
        cuts = draw(st.sets(st.integers(0, data.numel()), max_size=6)) | {0, data.numel()}
        bounds = sorted(cuts)
        name = f"layers.{index}/w@{index}"
        tensors[name] = data
        for first, last in zip(bounds, bounds[1:] or bounds, strict=False):
            rank = draw(st.integers(0, world - 1))
            ranks[rank].append(Shard(name, (rows, columns), first, data[first:last]))
    return tensors, ranks


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(splits(), st.data())
def test_any_split_reads_back_at_any_range(
    tmp_path: Path, state: tuple[dict[str, torch.Tensor], list[list[Shard]]], data: st.DataObject
) -> None:
    tensors, ranks = state
    shutil.rmtree(tmp_path)
    reader = Reader(write(tmp_path, 1, ranks))
    assert set(reader.tensors) == set(tensors)
    for name, expected in tensors.items():
        first = data.draw(st.integers(0, expected.numel()))
        last = data.draw(st.integers(first, expected.numel()))
        assert bits(reader.read(name, first, last - first)) == bits(expected[first:last])
        assert bits(reader.read(name)) == bits(expected)


def test_read_outside_is_refused(tmp_path: Path) -> None:
    reader = Reader(write(tmp_path, 1, halves(0)))
    for offset, numel in [(-1, 5), (90, 11), (101, None), (5, -1)]:
        with pytest.raises(UserError, match="has 100 elements"):
            reader.read("w", offset, numel)
    with pytest.raises(UserError, match="no tensor 'v'"):
        reader.read("v")


def test_results_do_not_share_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, halves(0))
    Reader(folder).read("w").zero_()
    assert verify(folder).read("w", 99).item() == 99


def test_verify_reports_progress(tmp_path: Path) -> None:
    folder, seen = write(tmp_path, 1, halves(0)), []
    verify(folder, lambda done, total: seen.append((done, total)))
    assert seen == [(240, 400), (400, 400)]


# Damage: each returns the words that the refusal must hold.


def flip_bit(folder: Path) -> str:
    file = folder / shard_name(1)
    content = bytearray(file.read_bytes())
    content[-3] ^= 16
    file.write_bytes(content)
    return "SHA-256"


def truncate(folder: Path) -> str:
    file = folder / shard_name(1)
    file.write_bytes(file.read_bytes()[:-8])
    return "bytes, but"


def remove_shard(folder: Path) -> str:
    (folder / shard_name(1)).unlink()
    return "No such file"


def mix_saves(folder: Path) -> str:
    shutil.copy(folder.with_name("step-00000001") / shard_name(1), folder)
    return "SHA-256"


def swap_shards(folder: Path) -> str:
    first = write(folder.parent / "other", 9, halves(0)[::-1])
    for rank in (0, 1):
        shutil.copy(first / shard_name(rank), folder)
    return "bytes, but"


def edit_header(folder: Path) -> str:
    file = folder / shard_name(1)
    file.write_bytes(file.read_bytes().replace(b"F32", b"I32"))
    return "int32"


def pickle_as_shard(folder: Path) -> str:
    file = folder / shard_name(1)
    size = file.stat().st_size
    file.write_bytes(pickle.dumps({"w@60": [0.0]}).ljust(size, b"."))
    return "not the file that was saved"


def link_shard(folder: Path) -> str:
    file = folder / shard_name(1)
    target = folder.parent / "elsewhere.safetensors"
    file.rename(target)
    file.symlink_to(target)
    return "symlink"


def edit_manifest(folder: Path) -> str:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"tokens":5', '"tokens":6'))
    return "it was edited"


def escape_folder(folder: Path) -> str:
    text = (folder / "manifest.json").read_text().replace("rank-00001", "../rank-00001")
    return seal(folder, text, "pattern")


def leave_gap(folder: Path) -> str:
    text = (folder / "manifest.json").read_text().replace('"shape":[10,10]', '"shape":[11,10]')
    return seal(folder, text, "are missing")


def seal(folder: Path, text: str, words: str) -> str:
    """Replace the manifest and the marker with it."""
    (folder / "manifest.json").write_text(text)
    (folder / "COMMITTED").write_text(marker_text(text.encode()))
    return words


def remove_marker(folder: Path) -> str:
    (folder / "COMMITTED").unlink()
    return "never finished"


def marker_folder(folder: Path) -> str:
    (folder / "COMMITTED").unlink()
    (folder / "COMMITTED").mkdir()
    return "not a plain file"


DEEP = [flip_bit, mix_saves, edit_header, pickle_as_shard]
CHEAP = [
    truncate,
    remove_shard,
    swap_shards,
    link_shard,
    edit_manifest,
    escape_folder,
    leave_gap,
    remove_marker,
    marker_folder,
]


@pytest.mark.parametrize("damage", DEEP + CHEAP)
def test_damage_is_refused(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    write(tmp_path, 1, halves(0))
    folder = write(tmp_path, 2, halves(1))
    words = damage(folder)
    with pytest.raises(UserError) as caught:
        verify(folder)
    message = str(caught.value)
    assert words in message and str(folder) in message
    assert "resume from an older checkpoint, or restore this file" in message
    if damage in DEEP:
        with pytest.raises(UserError, match="rank-00001"):
            Reader(folder).read("w", 90)
        assert Reader(folder).read("w", 0, 60).numel() == 60
    reports: list[str] = []
    assert choose(tmp_path, reports.append) == tmp_path / "step-00000001"
    assert len(reports) == 1 and message in reports[0]


@pytest.mark.parametrize("damage", CHEAP)
def test_latest_falls_back(
    tmp_path: Path, damage: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    older = write(tmp_path, 1, halves(0))
    words = damage(write(tmp_path, 2, halves(1)))
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path) == older
    assert complete(tmp_path) == [older]
    assert words in caplog.text


def test_renamed_folder_is_not_another_step(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, halves(0))
    folder.rename(tmp_path / "step-00000009")
    assert latest(tmp_path) is None
    assert Reader(tmp_path / "step-00000009").step == 1


def test_nothing_saved(tmp_path: Path) -> None:
    (tmp_path / "step-00000003").mkdir()
    reports: list[str] = []
    assert choose(tmp_path / "none", reports.append) is None and reports == []
    assert choose(tmp_path, reports.append) is None and "step-00000003" in reports[0]


def test_all_damaged_is_not_a_fresh_start(tmp_path: Path) -> None:
    flip_bit(write(tmp_path, 1, halves(0)))
    with pytest.raises(UserError, match="every committed checkpoint is damaged"):
        choose(tmp_path, lambda text: None)


def test_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"checkpoint\.path"):
        latest(tmp_path / "file")


def test_of_a_verified_save_only_the_ranges_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, halves(0))
    marker = Reader(folder).marker
    file = folder / shard_name(0)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert Reader(folder, marker).read("w", 3, 2).tolist() == [3.0, 4.0]
    with pytest.raises(UserError, match="SHA-256"):
        Reader(folder).read("w", 3, 2)
    with pytest.raises(UserError, match="not the save that was chosen"):
        Reader(folder, "another")
