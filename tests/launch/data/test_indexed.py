import hashlib
import os
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.launch.data import indexed
from moelstrom.launch.data.indexed import HEADER, IndexedReader, IndexedWriter, token_dtype

megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")

DTYPES = [np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int32)]


def random_documents(dtype: np.dtype, count: int = 40) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    top = np.iinfo(dtype).max + 1
    return [random.integers(0, top, random.integers(1, 50)).astype(dtype) for _ in range(count)]


def write(prefix: Path, documents: list[np.ndarray], dtype: np.dtype) -> None:
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add(document)


def write_megatron(prefix: Path, documents: list[np.ndarray], dtype: np.dtype) -> None:
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype.type)
    for document in documents:
        builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_files_are_those_of_megatron(tmp_path: Path, dtype: np.dtype) -> None:
    documents = random_documents(dtype)
    write(tmp_path / "ours", documents, dtype)
    write_megatron(tmp_path / "theirs", documents, dtype)
    for kind in ("bin", "idx"):
        ours, theirs = tmp_path / f"ours.{kind}", tmp_path / f"theirs.{kind}"
        assert ours.read_bytes() == theirs.read_bytes()
    dataset = megatron.IndexedDataset(str(tmp_path / "ours"))
    assert len(dataset) == len(documents)
    assert dataset.document_indices.tolist() == list(range(len(documents) + 1))
    for i, document in enumerate(documents):
        assert dataset[i].dtype == dtype
        np.testing.assert_array_equal(dataset[i], document)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_several_sequences_per_document(tmp_path: Path, dtype: np.dtype) -> None:
    parts = random_documents(dtype, 12)
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=dtype.type)
    for i, part in enumerate(parts):
        # Torch has few operations for unsigned types, so the builder takes int64 here.
        builder.add_item(torch.from_numpy(part.astype(np.int64)))
        if i % 3 == 2:
            builder.end_document()
    builder.finalize(str(tmp_path / "m.idx"))
    reader = IndexedReader(tmp_path / "m")
    assert reader.dtype == dtype
    assert reader.lengths.tolist() == [len(part) for part in parts]
    assert len(reader) == 4
    for i in range(4):
        np.testing.assert_array_equal(reader[i], np.concatenate(parts[3 * i : 3 * i + 3]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_several_sequences_per_document(tmp_path: Path, dtype: np.dtype) -> None:
    parts = random_documents(dtype, 12)
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=dtype.type)
    with IndexedWriter(tmp_path / "x", dtype) as writer:
        for i, part in enumerate(parts):
            builder.add_item(torch.from_numpy(part.astype(np.int64)))
            writer.add(part, last=i % 3 == 2)
            if i % 3 == 2:
                builder.end_document()
        assert writer.last_length == sum(map(len, parts[-3:]))
    builder.finalize(str(tmp_path / "m.idx"))
    for kind in ("bin", "idx"):
        assert (tmp_path / f"x.{kind}").read_bytes() == (tmp_path / f"m.{kind}").read_bytes()


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_a_tail_moves_to_another_file(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over blocks and sequences of its document; what is left ends with the token given."""
    monkeypatch.setattr(indexed, "COPY_BYTES", 4)
    dtype = np.dtype(np.uint16)
    with IndexedWriter(tmp_path / "x", dtype) as giver, IndexedWriter(tmp_path / "y", dtype) as to:
        giver.add(np.array([1, 2]))
        giver.add(np.array([3, 4, 5]), last=False)
        giver.add(np.array([6, 7, 8, 9]))
        giver.move_tail(count, 0, to)
    whole = [3, 4, 5, 6, 7, 8, 9]
    x, y = (IndexedReader(tmp_path / name) for name in "xy")
    assert [x[i].tolist() for i in range(len(x))] == [[1, 2], [*whole[:-count], 0]]
    assert [y[i].tolist() for i in range(len(y))] == [whole[-count:]]
    for name, writer in (("x", giver), ("y", to)):
        data = (tmp_path / f"{name}.bin").read_bytes()
        assert hashlib.sha256(data).hexdigest() == writer.sha256
        assert (writer.tokens, writer.documents) == (len(data) // 2, 2 if name == "x" else 1)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    write(tmp_path / "x", [np.array([1])], np.dtype(np.uint8))
    for kind in ("bin", "idx"):
        (tmp_path / f"x.{kind}").rename(tmp_path / "kept")
        os.mkfifo(tmp_path / f"x.{kind}")
        with pytest.raises(UserError, match=rf"x\.{kind}: cannot be read \(Not a regular file\)"):
            IndexedReader(tmp_path / "x")
        (tmp_path / "kept").replace(tmp_path / f"x.{kind}")


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    documents=st.lists(st.lists(st.integers(0, 255), max_size=9), max_size=9),
)
def test_round_trip(dtype: np.dtype, documents: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "x"
        write(prefix, [np.array(document, dtype=np.int64) for document in documents], dtype)
        reader = IndexedReader(prefix)
        assert [reader[i].tolist() for i in range(len(reader))] == documents
        assert reader.tokens.tolist() == [token for document in documents for token in document]
        assert sorted(path.name for path in prefix.parent.iterdir()) == ["x.bin", "x.idx"]


def test_smallest_dtype() -> None:
    sizes = {1: "u1", 256: "u1", 257: "u2", 65536: "u2", 65537: "i4"}
    assert {size: token_dtype(size).str[1:] for size in sizes} == sizes


def test_writer_refuses_overflow_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        write(tmp_path / "x", [np.array([1]), np.array([256])], np.dtype(np.uint8))
    assert not any(tmp_path.iterdir())


def test_nothing_has_its_name_before_the_end(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", np.dtype(np.uint16)) as writer:
        writer.add(np.array([1, 2]))
        assert not (tmp_path / "x.bin").exists()
    assert (tmp_path / "x.idx").exists()


def patch(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


END = HEADER.size
DAMAGE = {
    "magic": (lambda p: patch(p / "x.idx", 0, b"ZIP"), r"x\.idx: it does not start with"),
    "empty idx": (lambda p: cut(p / "x.idx", 0), r"x\.idx: it does not start with"),
    "short header": (lambda p: cut(p / "x.idx", 20), r"x\.idx: its header stops after 20"),
    "version": (lambda p: patch(p / "x.idx", 9, b"\2"), r"x\.idx: its version is 2"),
    "dtype": (lambda p: patch(p / "x.idx", 17, b"\6"), r"x\.idx: dtype code 6"),
    "idx cut": (lambda p: cut(p / "x.idx", 90), r"x\.idx: it has 90 bytes, but 3 sequences"),
    "bin cut": (lambda p: cut(p / "x.bin", 10), r"x\.bin: it has 10 bytes, but x\.idx counts 12"),
    "bin gone": (lambda p: (p / "x.bin").unlink(), r"x\.bin: cannot be read"),
    "idx gone": (lambda p: (p / "x.idx").unlink(), r"x\.idx: cannot be read"),
    "length": (lambda p: patch(p / "x.idx", END, b"\3"), "offsets do not match its lengths"),
    "negative": (lambda p: patch(p / "x.idx", END, b"\xff" * 4), "negative sequence length"),
    "last length": (lambda p: patch(p / "x.idx", END + 8, b"\2"), r"x\.bin: it has 12 bytes"),
    "documents": (
        lambda p: patch(p / "x.idx", END + 36 + 24, struct.pack("<q", 9)),
        "do not cover its sequences",
    ),
    "falls": (lambda p: patch(p / "x.idx", END + 36 + 8, b"\3"), "document index falls"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "x", [np.array(d) for d in ([1, 2], [3, 4, 5], [6])], np.dtype(np.uint16))
    IndexedReader(tmp_path / "x")
    inflict, message = DAMAGE[damage]
    inflict(tmp_path)
    with pytest.raises(UserError, match=message):
        IndexedReader(tmp_path / "x")


def test_an_open_reader_outlives_its_files(tmp_path: Path) -> None:
    write(tmp_path / "x", [np.array([1, 2])], np.dtype(np.uint16))
    reader = IndexedReader(tmp_path / "x")
    shutil.rmtree(tmp_path)
    assert reader[0].tolist() == [1, 2]
