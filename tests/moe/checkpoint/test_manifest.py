"""The manifest's strict loading: a valid manifest or a UserError, whatever the bytes."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.moe.checkpoint.manifest import Manifest, dump, parse

A, B = "rank-00000.safetensors", "rank-00001.safetensors"
SHA = "ab" * 32


def piece(file: str, offset: int, numel: int, name: str = "w") -> dict[str, Any]:
    key = f"{name}@{offset}"
    return {"file": file, "key": key, "offset": offset, "numel": numel, "sha256": SHA}


VALID: dict[str, Any] = {
    "format": "moelstrom-checkpoint",
    "version": 1,
    "step": 7,
    "meta": {"loss": 1.5, "data": {"position": [1, None]}},
    "files": {A: 200, B: 100},
    "tensors": {
        "w": {"dtype": "float32", "shape": [3, 4], "pieces": [piece(A, 0, 5), piece(B, 5, 7)]},
        "scalar": {"dtype": "int64", "shape": [], "pieces": [piece(A, 0, 1, "scalar")]},
        "empty": {"dtype": "uint8", "shape": [0, 9], "pieces": []},
    },
}


def edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    data = copy.deepcopy(VALID)
    edit(data)
    return json.dumps(data).encode()


def load(text: bytes) -> Manifest:
    return parse(text, "folder/manifest.json")


def test_roundtrip() -> None:
    manifest = load(json.dumps(VALID).encode())
    assert json.loads(dump(manifest)) == VALID
    assert load(dump(manifest)) == manifest


def test_pieces_are_sorted() -> None:
    manifest = load(edited(lambda d: d["tensors"]["w"]["pieces"].reverse()))
    assert [p.offset for p in manifest.tensors["w"].pieces] == [0, 5]


def put(data: Any, *path: Any) -> None:
    """Set the value at a path; the last argument is the value."""
    *steps, last, value = path
    for step in steps:
        data = data[step]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["version"], 3, "version 3"),
        (["version"], None, "version None"),
        (["format"], "other", "not a manifest"),
        (["step"], -1, "step: "),
        (["step"], True, "step: "),
        (["step"], 1.0, "step: "),
        (["meta"], [], "meta: "),
        (["extra"], 1, "extra: "),
        (["files", "../" + A], 1, "files"),
        (["files", "/etc/x.safetensors"], 1, "files"),
        (["files", "a/b.safetensors"], 1, "files"),
        (["files", "..\\x.safetensors"], 1, "files"),
        (["files", A], 10, "do not fit"),
        (["files", A], "200", "files"),
        (["tensors", "w", "dtype"], "float31", "float31"),
        (["tensors", "w", "shape"], [3, 5], "[12, 15) are missing"),
        (["tensors", "w", "shape"], [11], "ends at 12"),
        (["tensors", "w", "shape"], [3, -4], "shape"),
        (["tensors", "w", "shape"], [2**60, 2**60], "too large"),
        (["tensors", "w", "shape"], [1] * 17, "shape"),
        (["tensors", "w", "pieces", 1, "offset"], 6, "[5, 6) are missing"),
        (["tensors", "w", "pieces", 1, "offset"], 4, "[4, 5) are held twice"),
        (["tensors", "w", "pieces", 1, "file"], "rank-00002.safetensors", "does not list"),
        (["tensors", "w", "pieces", 1, "file"], "../" + A, "file"),
        (["tensors", "w", "pieces", 1, "numel"], 0, "numel"),
        (["tensors", "w", "pieces", 1, "sha256"], "AB" * 32, "sha256"),
        (["tensors", "w", "pieces", 1, "rows"], 2, "7 elements make no 2 equal rows"),
        (["tensors", "w", "pieces", 1, "rows"], 7, "stride 0 is below the run of 1"),
        (["tensors", "w", "pieces", 1, "stride"], 7, "one row has no stride"),
        (["tensors", "w", "sha256"], "ab", "sha256"),
        (["tensors", "scalar", "sha256"], "cd" * 32, "not that of its only piece"),
        (["tensors", "scalar", "pieces", 0, "key"], "w@0", "share key"),
        (["tensors", "w", "pieces", 0, "key"], "\ud800", "key"),
    ],
)
def test_refused(path: list[Any], value: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(edited(lambda data: put(data, *path, value)))
    message = str(caught.value)
    assert message.startswith("folder/manifest.json: ") and words in message
    assert "restore this file" in message or "use the moelstrom that wrote it" in message


@pytest.mark.parametrize("field", ["step", "meta", "files", "tensors"])
def test_missing_field(field: str) -> None:
    with pytest.raises(UserError, match=f"{field}: Field required"):
        load(edited(lambda data: data.pop(field)))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"NaN", b"[" * 100_000, b"9" * 10_000, b"\x80\x04]."],
)
def test_not_json(text: bytes) -> None:
    with pytest.raises(UserError, match=r"folder/manifest\.json: not a"):
        load(text)


def test_duplicate_json_key() -> None:
    text = json.dumps(VALID).replace('"step": 7', '"step": 7, "step": 8').encode()
    with pytest.raises(UserError, match="'step' appears twice"):
        load(text)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, key))
    return found


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(2**70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
SMALL = st.integers(-2, 14) | st.sampled_from([A, B, "../x.safetensors", "float16", "w@0"])


@settings(deadline=None)
@given(st.sampled_from(places(VALID)), VALUES | SMALL, st.sampled_from(["set", "drop", "add"]))
def test_fuzzed_edits(path: tuple[Any, ...], value: Any, how: str) -> None:
    def edit(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        if how == "drop":
            del data[path[-1]]
        elif how == "add" and isinstance(data, dict):
            data[str(value)] = value
        else:
            data[path[-1]] = value

    check_valid_or_refused(edited(edit))


@settings(deadline=None)
@given(st.integers(0, len(json.dumps(VALID)) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_fuzzed_bytes(position: int, inserted: bytes, removed: int) -> None:
    text = json.dumps(VALID).encode()
    check_valid_or_refused(text[:position] + inserted + text[position + removed :])


def check_valid_or_refused(text: bytes) -> None:
    try:
        manifest = load(text)
    except UserError as error:
        assert str(error).startswith("folder/manifest.json: ")
        str(error).encode()
        return
    assert load(dump(manifest)) == manifest
    for tensor in manifest.tensors.values():
        assert sum(p.numel for p in tensor.pieces) == tensor.numel
        assert all(p.file in manifest.files for p in tensor.pieces)
