"""A checkpoint of strided pieces: any range reads back, any damage is named."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slab_covers import covers

from moelstrom import UserError
from moelstrom.moe.checkpoint import folder as disk
from moelstrom.moe.checkpoint.manifest import Manifest, Piece, TensorEntry, digest, dump
from moelstrom.moe.checkpoint.reader import Reader, verify
from moelstrom.moe.checkpoint.tensorfile import TensorFile
from moelstrom.moe.state.source import Slab, TensorInfo


def elements(data: torch.Tensor, slab: Slab) -> torch.Tensor:
    """The slab's elements in its own order."""
    rows = [data[slab.offset + row * slab.stride :][: slab.run] for row in range(slab.rows)]
    return torch.cat(rows)


def write(path: Path, data: torch.Tensor, slabs: list[Slab]) -> Path:
    """A checkpoint of one tensor `w`, its slabs dealt to two files."""
    temporary, final = path / ".tmp", disk.step_folder(path, 1)
    temporary.mkdir(parents=True)
    pieces, files = [], {}
    for rank in range(2):
        mine = {f"w@{s.offset}": s for s in slabs[rank::2]}
        infos = {key: TensorInfo(data.dtype, (s.numel,)) for key, s in mine.items()}
        name = disk.shard_name(rank)
        with TensorFile(temporary / name, infos) as file:
            for key, s in mine.items():
                part = elements(data, s)
                file.write(key, part)
                piece = Piece(
                    file=name,
                    key=key,
                    offset=s.offset,
                    numel=s.numel,
                    rows=s.rows,
                    stride=s.stride,
                    sha256=digest(part),
                )
                pieces.append(piece)
        files[name] = file.size
    entry = TensorEntry(dtype=str(data.dtype).split(".")[1], shape=[len(data)], pieces=pieces)
    disk.publish(
        temporary, final, dump(Manifest(step=1, meta={}, files=files, tensors={"w": entry}))
    )
    return final


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(covers(), st.sampled_from([torch.float32, torch.bfloat16, torch.int64]), st.data())
def test_any_range_reads_back(
    tmp_path: Path, cover: tuple[list[Slab], int], dtype: torch.dtype, data: st.DataObject
) -> None:
    slabs, numel = cover
    shutil.rmtree(tmp_path)
    whole = torch.randint(2**15, (numel,)).to(dtype)
    reader = verify(write(tmp_path, whole, slabs))
    first = data.draw(st.integers(0, numel))
    last = data.draw(st.integers(first, numel))
    assert torch.equal(reader.read("w", first, last - first), whole[first:last])
    assert torch.equal(Reader(reader.folder).read("w"), whole)


def test_a_flipped_bit_of_a_strided_piece_is_named(tmp_path: Path) -> None:
    slabs = [Slab("w", 0, 2, 3, 4), Slab("w", 2, 2, 3, 4)]
    folder = write(tmp_path, torch.arange(12.0), slabs)
    file = folder / disk.shard_name(1)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"rank-00001.*damaged at 'w' \[2, 12\).*SHA-256"):
        Reader(folder).read("w", 2, 1)
    assert Reader(folder).read("w", 4, 2).tolist() == [4, 5]


def test_version_1_still_reads(tmp_path: Path) -> None:
    folder = write(tmp_path, torch.arange(12.0), [Slab("w", 0, 5), Slab("w", 5, 7)])
    text = (folder / disk.MANIFEST).read_text()
    assert '"version":2' in text and "rows" not in text and "stride" not in text
    old = text.replace('"version":2', '"version":1')
    (folder / disk.MANIFEST).write_text(old)
    (folder / disk.MARKER).write_text(disk.marker_text(old.encode()))
    assert torch.equal(verify(folder).read("w"), torch.arange(12.0))
