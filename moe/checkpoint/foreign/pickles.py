"""Unpickling that runs nothing: a short list of names, and stand-ins instead of classes.

torch.load with weights_only=True would need DeepSpeed and Megatron imported to let their classes
pass, and reads whole files. Here tensors become whatever `Loader.tensor` makes of them, and no
class of another library is ever imported.
"""

import io
import pickle
from collections import OrderedDict
from typing import Any

import torch

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
"""torch's typed storages, as torch.save names them."""

INERT_MODULES = ("deepspeed", "megatron", "torch.distributed.checkpoint")
"""Modules, with those below them, any of whose names may appear: data is kept, nothing loaded."""
INERT = {
    ("argparse", "Namespace"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("signal", "Signals"),
    ("torch", "Tensor"),
}
"""Other classes that may appear, kept as data too."""


class RefusedError(Exception):
    """The pickle asks for something that no checkpoint needs."""


class Inert:
    """The data of an object whose class is not loaded: attributes by their names, and `args`,
    what it was constructed from."""

    args: tuple

    def __new__(cls, *args: Any) -> "Inert":
        made = object.__new__(cls)
        made.args = args
        return made

    def __setstate__(self, state: Any) -> None:
        """Take the attributes; any other state becomes `state`."""
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class Loader(pickle.Unpickler):
    """Unpickles `data` with `load`; whatever it meets outside the lists raises RefusedError.

    What a pickle gets to call are methods of this object and classes made for it, so that it can
    change nothing that outlives it.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._known = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor_v2,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
            ("torch.serialization", "_get_layout"): self._layout,
            ("_codecs", "encode"): self._encode,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): torch.Size,
        }

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may call under this name."""
        known = self._known.get((module, name))
        if known is not None:
            return known
        if (module, name) in INERT or f"{module}.".startswith(
            tuple(f"{m}." for m in INERT_MODULES)
        ):
            return type("Inert", (Inert,), {})
        if module in ("torch", "torch.storage"):
            found = STORAGES.get(name) or getattr(torch, name, None)
            if isinstance(found, torch.dtype):
                return found
        raise RefusedError(f"it asks for {module}.{name}, which no checkpoint needs")

    def tensor(
        self, storage: Any, dtype: torch.dtype, offset: int, shape: tuple, stride: tuple
    ) -> Any:
        """The tensor at element `offset` of `storage`, which is what `persistent_load` made."""
        raise RefusedError("it holds a tensor, where only data was expected")

    def _tensor_v2(self, storage: Any, offset: int, shape: tuple, stride: tuple, *_: Any) -> Any:
        return self.tensor(storage, storage.dtype, offset, tuple(shape), tuple(stride))

    def _tensor_v3(
        self,
        storage: Any,
        offset: int,
        shape: tuple,
        stride: tuple,
        grad: bool,
        hooks: Any,
        dtype: torch.dtype,
        *_: Any,
    ) -> Any:
        return self.tensor(storage, dtype, offset, tuple(shape), tuple(stride))

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data

    def _from_type(self, build: Any, kind: Any, args: tuple, state: Any) -> Any:
        """A tensor with attributes of its own, which are left out."""
        return build(*args)

    def _layout(self, name: str) -> str:
        return name

    def _encode(self, text: str, encoding: str) -> bytes:
        """How pickles before protocol 3 write bytes."""
        return str(text).encode("latin-1" if encoding == "latin1" else "utf-8")


def explain(error: Exception) -> str:
    """Why a pickle could not be read, in a few words."""
    return str(error) if isinstance(error, RefusedError) else f"not a whole pickle: {error}"
