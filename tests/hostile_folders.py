"""Foreign folders that claim, hide or ask for something: how each is made."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import foreign_folders as good
import torch

BIG = 2**40


class Raw:
    """A pickle as it is, and the zip archive of torch.save around it."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def archive(self, method: int = zipfile.ZIP_STORED) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as made:
            made.writestr("archive/data.pkl", self.text)
        return out.getvalue()


def doubled(levels: int) -> bytes:
    """A pickle's tuple of two tuples of two tuples and so on: 2^levels values."""
    return b"Nq\x000" + b"h\x00h\x00\x86q\x000" * levels + b"h\x00"


PICKLES = {
    "nested tuples as a key": Raw(b"\x80\x02}" + doubled(40) + b"Ns."),
    "nested tuples in a set": Raw(b"\x80\x04\x8f(" + doubled(40) + b"\x90."),
    "a far place of the memo": Raw(b"\x80\x02Nr\xff\xff\xff\x0f."),
    "a text of 8 GB": Raw(b"\x80\x04\x8d" + struct.pack("<Q", 2**33) + b"a."),
    "an array of 8 GB": Raw(b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"a."),
    "equal hashes": Raw(
        b"\x80\x02}("
        + b"".join(
            b"\x8a\x0a" + ((2**61 - 1) * k).to_bytes(10, "little") + b"N" for k in range(30000)
        )
        + b"u."
    ),
    "arguments copied again and again": Raw(
        b"\x80\x02cmegatron\nA\nq\x01(" + b"N" * 100_000 + b"tq\x00" + b"h\x01h\x00R" * 2000 + b"."
    ),
    "attributes copied again and again": Raw(
        b"\x80\x02cmegatron\nA\nq\x01}(" + b"".join(b"M" + struct.pack("<H", k) + b"N"
        for k in range(2**16)) + b"uq\x00" + b"h\x01)Rh\x00b" * 2000 + b"."
    ),
    "nested tuples as text": Raw(
        b"\x80\x02c_codecs\nencode\n" + doubled(40) + b"X\x06\x00\x00\x00latin1\x86R."
    ),
    "nested tuples as a storage": Raw(
        b"\x80\x02X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + doubled(40) + b"\x87Q."
    ),
    "a deep list": Raw(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
    "an unfinished call": Raw(b"\x80\x02."),
}  # fmt: skip
"""Each must be refused by every reader of pickles, or hold nothing that it looks for."""
Spoil = Callable[[Path], Any]
CASES: dict[str, tuple[str, Spoil, str]] = {}
"""By name: the kind of folder, how a good one is spoilt, and what the error must say."""


def _case(name: str, kind: str, says: str) -> Callable[[Spoil], Spoil]:
    def add(spoil: Spoil) -> Spoil:
        CASES[f"{kind}: {name}"] = kind, spoil, says
        return spoil

    return add


def _add_pickles() -> None:
    for name, raw in PICKLES.items():
        for kind, file in (
            ("deepspeed", good.WEIGHTS),
            ("universal", "zero/model.norm.weight/fp32.pt"),
            ("megatron", "common.pt"),
        ):
            _case(name, kind, "refused|holds no|not as")(partial(_put, file, raw.archive()))
        _case(name, "dcp", "refused|not as")(partial(_put, ".metadata", raw.text))


def _put(file: str, text: bytes, folder: Path) -> None:
    (folder / file).write_bytes(text)


PLACES = {
    "dcp": (".metadata", "__0_0.distcp"),
    "deepspeed": (good.WEIGHTS, good.STATES),
    "universal": (good.WEIGHTS, "zero/model.norm.weight/fp32.pt"),
    "megatron": ("metadata.json", "common.pt", ".metadata", "__0_0.distcp"),
    "huggingface": (
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00004.safetensors",
    ),
}
"""Files that a reader opens."""


def _add_pipes() -> None:
    makers: dict[str, Callable[[Path], Any]] = {
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "an endless device": lambda place: place.symlink_to("/dev/zero"),
    }
    for kind, files in PLACES.items():
        for file in files:
            for what, make in makers.items():
                _case(f"{what} as {file}", kind, "not a plain file")(partial(_replace, file, make))


def _replace(file: str, make: Callable[[Path], Any], folder: Path) -> None:
    (folder / file).unlink(missing_ok=True)
    make(folder / file)


_add_pickles()
_add_pipes()


def _rewrite(folder: Path, file: str, change: Callable[[Any], Any]) -> None:
    state = torch.load(folder / file, weights_only=False)
    change(state)
    torch.save(state, folder / file)


def _edit_metadata(folder: Path, change: Callable[[Any], Any]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@_case("a step of 2^40 elements", "dcp", "larger than its")
def _(folder: Path) -> None:
    def change(metadata: Any) -> None:
        held = metadata.state_dict_metadata["optim.state.embedding.step"]
        held.size = torch.Size([BIG])
        held.chunks[0].sizes = torch.Size([BIG])
        held.chunks[0].offsets = torch.Size([0])
        _move(metadata, "optim.state.embedding.step", (0,))

    _edit_metadata(folder, change)


def _move(metadata: Any, name: str, offset: tuple[int, ...]) -> None:
    """Store the item of `name` under another offset."""
    (index,) = (i for i in metadata.storage_data if i.fqn == name)
    info = metadata.storage_data.pop(index)
    metadata.storage_data[type(index)(name, torch.Size(offset))] = info


@_case("a weight of 2^40 rows", "dcp", "larger than its")
def _(folder: Path) -> None:
    def change(metadata: Any) -> None:
        held = metadata.state_dict_metadata["model.embedding"]
        held.size = held.chunks[0].sizes = torch.Size([BIG, 8])

    _edit_metadata(folder, change)


@_case("a weight and its bytes of 2^40 rows", "dcp", "__0_0.distcp: cannot be read .*truncated")
def _(folder: Path) -> None:
    def change(metadata: Any) -> None:
        held = metadata.state_dict_metadata["model.embedding"]
        held.size = held.chunks[0].sizes = torch.Size([BIG, 8])
        for index, info in metadata.storage_data.items():
            if index.fqn == "model.embedding":
                info.length = BIG * 64

    _edit_metadata(folder, change)


@_case("a hole", "dcp", r"the pieces of model\.embedding have 64 of its 128 elements")
def _(folder: Path) -> None:
    def change(metadata: Any) -> None:
        metadata.state_dict_metadata["model.embedding"].chunks[0].sizes = torch.Size([8, 8])

    _edit_metadata(folder, change)


@_case("a piece twice and a hole", "dcp", r"elements of model\.embedding are there twice")
def _(folder: Path) -> None:
    def change(metadata: Any) -> None:
        held = metadata.state_dict_metadata["model.embedding"]
        held.chunks[0].sizes = torch.Size([8, 8])
        held.chunks.append(held.chunks[0])

    _edit_metadata(folder, change)


@_case("names that share their parts", "dcp", "refused: a key is")
def _(folder: Path) -> None:
    def change(metadata: Any) -> None:
        shared: Any = ()
        for _ in range(10):
            shared = (shared, shared)
        metadata.state_dict_metadata[shared] = None

    _edit_metadata(folder, change)


@_case("a tensor of no shape that fits", "megatron", "no embedding.word_embeddings.weight: ")
def _(folder: Path) -> None:
    state = good.megatron_tensors()
    del state["embedding.word_embeddings.weight"]
    good.write_megatron(folder, state)


@_case("2^40 layers in a tensor", "megatron", "larger than its")
def _(folder: Path) -> None:
    good.write_megatron(
        folder, {**good.megatron_tensors(), "decoder.layers.mlp.router.weight": torch.ones(2, 2, 8)}
    )

    def change(metadata: Any) -> None:
        held = metadata.state_dict_metadata["decoder.layers.mlp.router.weight"]
        held.size = held.chunks[0].sizes = torch.Size([BIG, 2, 8])

    _edit_metadata(folder, change)


@_case("2^20 empty layers in a tensor", "megatron", "has 2 layers: give the config")
def _(folder: Path) -> None:
    empty = {"decoder.layers.mlp.router.weight": torch.ones(2**20, 0, 8)}
    good.write_megatron(folder, {**good.megatron_tensors(), **empty})


@_case("2^40 layers in its model", "deepspeed", "no model is that large")
def _(folder: Path) -> None:
    _rewrite(folder, good.WEIGHTS, lambda state: state["model"].update(num_layers=BIG))


@_case("2^40 experts in its model", "deepspeed", "no model is that large")
def _(folder: Path) -> None:
    _rewrite(folder, good.WEIGHTS, lambda state: state["model"]["moe"].update(num_experts=BIG))


@_case("2^60 columns in its model", "deepspeed", "no model is that large")
def _(folder: Path) -> None:
    _rewrite(folder, good.WEIGHTS, lambda state: state["model"].update(hidden_size=2**60))


@_case("2^40 rows in its shapes", "deepspeed", r"model.embedding|embedding is \[1099511627776, 8\]")
def _(folder: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state["param_shapes"][0]["model.embedding"] = torch.Size([BIG, 8])

    _rewrite(folder, good.WEIGHTS, change)


@_case("2^40 ranks", "deepspeed", "no optimizer states of rank 1 of 1099511627776")
def _(folder: Path) -> None:
    _rewrite(folder, good.WEIGHTS, lambda state: state.update(dp_world_size=BIG))


@_case("2^90 ranks", "deepspeed", "not as our engine with DeepSpeed .* saves it")
def _(folder: Path) -> None:
    _rewrite(folder, good.WEIGHTS, lambda state: state.update(dp_world_size=2**90))


@_case("an endless step", "deepspeed", "a step is inf, no whole number")
def _(folder: Path) -> None:
    _rewrite(folder, good.WEIGHTS, lambda state: state.update(global_steps=float("inf")))
    (folder / good.STATES).unlink()
    states = good.deepspeed_states()
    del states["optimizer_state_dict"]["optimizer_state_dict"]["state"][0]["step"]
    torch.save(states, folder / good.STATES)


@_case("a step of two numbers", "universal", r"a step has \[2\] elements")
def _(folder: Path) -> None:
    torch.save(torch.ones(2), folder / "zero" / "model.norm.weight" / "step.pt")


@_case("a record that shares its parts", "deepspeed", "a record is larger or deeper")
def _(folder: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        for _ in range(40):
            state["data"] = {"a": state["data"], "b": state["data"]}

    _rewrite(folder, good.WEIGHTS, change)


@_case("numbers that JSON lacks", "deepspeed", "a number out of range")
def _(folder: Path) -> None:
    _rewrite(folder, good.WEIGHTS, lambda state: state.update(data={"a": float("nan")}))


@_case("200 MB in 200 KB", "deepspeed", "is compressed, which torch.save never does")
def _(folder: Path) -> None:
    raw = Raw(b"\x80\x02X" + struct.pack("<I", 200 << 20) + bytes(200 << 20) + b".")
    (folder / good.WEIGHTS).write_bytes(raw.archive(zipfile.ZIP_DEFLATED))


@_case("a record of 2^40 bytes", "universal", "fp32.pt: .*ends outside the file")
def _(folder: Path) -> None:
    """The zip's directory claims it, and the tensor in it."""
    file = folder / "zero" / "model.norm.weight" / "fp32.pt"
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        claimed = new.getinfo("fp32/data/0")
        claimed.file_size = claimed.compress_size = BIG


@_case("2^40 layers", "huggingface", "num_hidden_layers is 1099511627776, above")
def _(folder: Path) -> None:
    _edit_config(folder, num_hidden_layers=BIG)


@_case("2^40 experts", "huggingface", "no model is that large")
def _(folder: Path) -> None:
    _edit_config(folder, num_local_experts=BIG)


@_case("a deep value", "huggingface", r"config\.json: .*deep")
def _(folder: Path) -> None:
    text = (folder / "config.json").read_text().rstrip().removesuffix("}")
    (folder / "config.json").write_text(f'{text}, "hidden_act": {"[" * 400}{"]" * 400}}}')


def _edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
