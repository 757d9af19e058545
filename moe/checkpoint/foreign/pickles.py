"""Unpickling that runs nothing: a short list of names, and stand-ins instead of classes.

torch.load with weights_only=True would need DeepSpeed and Megatron imported to let their classes
pass, and reads whole files. Here tensors become whatever `PickleLoader.tensor` makes of them, and
no class of another library is ever imported.

Time and memory grow with the pickle's bytes alone. Python's own unpickler in C reserves what a
few bytes claim (a memo of 2^28 places, a string of 4 GB) before it looks for them; the one in
Python, which is extended here, does not. What remains are values that share their parts: a tuple
of two tuples of two tuples takes 2^30 steps to hash or to print after 30 levels. So only flat
values become keys, sets become lists, no call takes many arguments, and nothing is printed whole.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ..tensorfile import CODES

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
MAX_PICKLE = 1 << 30
"""Bytes of the largest pickle that is read: it holds names, not data."""
MAX_FLAT = 64
"""Arguments of one call, dimensions of one shape, parts of one key."""
MAX_KEYS = 4096
"""Tuples as keys, such as Megatron's pairs of types: their hashes can be made to collide."""
_WHOLE = 2**61 - 1
"""From here on whole numbers share their hashes with smaller ones."""


class RefusedError(Exception):
    """The pickle asks for something that no checkpoint needs."""


class Inert:
    """The data of an object whose class is not loaded: attributes by their names."""

    def __new__(cls, *args: Any) -> "Inert":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Take the attributes as they are, for a copy could be made any number of times; any other
        state becomes `state`."""
        self.__dict__ = state if isinstance(state, dict) else {"state": state}


class PickleLoader(pickle._Unpickler):
    """Unpickles `data` with `load`; whatever it meets outside the lists raises RefusedError.

    What a pickle gets to call are methods of this object and classes made for it, so that it can
    change nothing that outlives it.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._known = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor_v2,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
            ("torch.serialization", "_get_layout"): self._layout,
            ("_codecs", "encode"): self._encode,
            ("collections", "OrderedDict"): self._ordered_dict,
            ("torch", "Size"): self._size,
        }
        self._classes: dict[tuple[str, str], type[Inert]] = {}
        self._keys = 0

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may call under this name."""
        known = self._known.get((module, name))
        if known is not None:
            return known
        if (module, name) in INERT or f"{module}.".startswith(
            tuple(f"{m}." for m in INERT_MODULES)
        ):
            if (module, name) not in self._classes:
                self._classes[module, name] = type("Inert", (Inert,), {})
            return self._classes[module, name]
        if module in ("torch", "torch.storage"):
            found = STORAGES.get(name) or getattr(torch, name, None)
            if isinstance(found, torch.dtype) and found in CODES:
                return found
        raise RefusedError(f"it asks for {shown(f'{module}.{name}')}, which no checkpoint needs")

    def tensor(
        self, storage: Any, dtype: torch.dtype, offset: int, shape: tuple, stride: tuple
    ) -> Any:
        """The tensor at element `offset` of `storage`, which is what `persistent_load` made."""
        raise RefusedError("it holds a tensor, where only data was expected")

    def _tensor_v2(self, storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Any:
        return self.tensor(storage, storage.dtype, offset, self._size(shape), self._size(stride))

    def _tensor_v3(
        self,
        storage: Any,
        offset: int,
        shape: Any,
        stride: Any,
        grad: bool,
        hooks: Any,
        dtype: torch.dtype,
        *_: Any,
    ) -> Any:
        return self.tensor(storage, dtype, offset, self._size(shape), self._size(stride))

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data

    def _from_type(self, build: Any, kind: Any, args: Any, state: Any) -> Any:
        """A tensor with attributes of its own, which are left out."""
        if build not in (self._tensor_v2, self._tensor_v3):
            raise RefusedError("it makes a tensor in a way that no checkpoint needs")
        return self._call(build, args)

    def _layout(self, name: str) -> str:
        return name

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How pickles before protocol 3 write bytes."""
        if not isinstance(text, str):
            raise RefusedError("it encodes what is no text")
        return text.encode("latin-1" if encoding == "latin1" else "utf-8")

    def _ordered_dict(self) -> dict[Any, Any]:
        """Filled by the operations that follow."""
        return {}

    def _size(self, sizes: Any) -> tuple[int, ...]:
        if not isinstance(sizes, tuple | list) or len(sizes) > MAX_FLAT:
            raise RefusedError("a shape is none")
        if not all(type(n) is int and 0 <= n < 2**62 for n in sizes):
            raise RefusedError("a shape is impossible")
        return tuple(sizes)

    def _call(self, found: Any, args: Any) -> Any:
        if not isinstance(args, tuple | list) or len(args) > MAX_FLAT:
            raise RefusedError("it calls something with arguments that no checkpoint needs")
        inert = isinstance(found, type) and issubclass(found, Inert)
        if not inert and found not in self._known.values():
            raise RefusedError("it calls what is no function")
        return found(*args)

    def _set(self, target: Any, items: list[Any]) -> None:
        if type(target) is not dict:
            raise RefusedError("it fills what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._check_key(key)
            target[key] = value

    def _check_key(self, key: Any) -> None:
        if isinstance(key, tuple):
            self._keys += 1
            if self._keys > MAX_KEYS or len(key) > MAX_FLAT or not all(map(_is_flat, key)):
                raise RefusedError("a key is a tuple of tuples, or there are too many")
        elif not _is_flat(key):
            raise RefusedError(f"a key is a {type(key).__name__}")

    # What follows takes the place of the base class's operations of the same names.

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _load_newobj_ex(self) -> None:
        if self.stack.pop() != {}:
            raise RefusedError("it calls something by keywords")
        self._load_reduce()

    def _load_dict(self) -> None:
        items, made = self.pop_mark(), dict[Any, Any]()
        self._set(made, items)
        self.append(made)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        self._set(self.stack[-1], items)

    def _load_append(self) -> None:
        self._extend([self.stack.pop()])

    def _load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise RefusedError("it fills what is no list")
        self.stack[-1].extend(items)

    def _load_list(self) -> None:
        self.append(self.pop_mark())

    def _load_empty_list(self) -> None:
        self.append([])

    def _load_build(self) -> None:
        """Attributes of stand-ins; those of a dictionary are torch's notes."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            Inert.__setstate__(self.stack[-1], state)
        elif type(self.stack[-1]) is not dict:
            raise RefusedError("it gives attributes to what has none")

    def _load_other(self) -> None:
        raise RefusedError("it uses an operation that no checkpoint needs")

    dispatch.update(
        {
            pickle.REDUCE[0]: _load_reduce,
            pickle.NEWOBJ[0]: _load_reduce,
            pickle.NEWOBJ_EX[0]: _load_newobj_ex,
            pickle.DICT[0]: _load_dict,
            pickle.SETITEM[0]: _load_setitem,
            pickle.SETITEMS[0]: _load_setitems,
            pickle.APPEND[0]: _load_append,
            pickle.APPENDS[0]: _load_appends,
            pickle.EMPTY_SET[0]: _load_empty_list,
            pickle.FROZENSET[0]: _load_list,
            pickle.ADDITEMS[0]: _load_appends,
            pickle.BUILD[0]: _load_build,
            **dict.fromkeys(b"io\x82\x83\x84\x96\x97\x98", _load_other),
        }
    )
    # INST, OBJ, EXT1 to 4, BYTEARRAY8 (which reserves what it claims), NEXT_ and READONLY_BUFFER.


def _is_flat(value: Any) -> bool:
    """Whether hashing takes one step, and hashes do not collide but by chance."""
    if type(value) is int:
        return -_WHOLE < value < _WHOLE
    flat = isinstance(value, str | bytes | float | bool | torch.dtype | Inert)
    return flat or value is None


def shown(text: object) -> str:
    """The beginning of a foreign text on one line."""
    line = " ".join(str(text)[:400].split())
    return line if len(line) <= 200 else f"{line[:200]}..."


def explain(error: Exception) -> str:
    """Why a pickle could not be read, in a few words."""
    why = str(error) if isinstance(error, RefusedError) else f"not a whole pickle: {error}"
    return shown(why)
