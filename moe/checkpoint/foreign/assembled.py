"""A checkpoint of another library under canonical names."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .... import UserError
from ...state.names import Logical, overlaps
from ...state.source import TensorInfo
from .torchfile import FIX, Stored
from .values import Values, Zeros
from .wanted import Wanted

KINDS = {
    "exp_avg": "adamw/exp_avg",
    "exp_avg_sq": "adamw/exp_avg_sq",
    "momentum": "muon/momentum",
    "momentum_buffer": "muon/momentum",
}
"""Prefix of the canonical name of each optimizer state."""
RULES = (("adamw/exp_avg", "adamw/exp_avg_sq"), ("muon/momentum",))


@dataclass(frozen=True)
class Part:
    """Elements [offset, offset + numel) of a logical tensor: those of `values` from `at` on."""

    offset: int
    numel: int
    values: Values
    at: int

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.offset + self.numel


class Assembly:
    """Collects where the elements of every logical tensor lie, and checks that all are there."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.folder, self.wanted = folder, wanted
        self._parts: dict[str, list[Part]] = defaultdict(list)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, prefix: str, name: str, values: Values) -> None:
        """`values` are all of the parameter or buffer `name`."""
        shape = self.wanted.shape(name)
        if tuple(values.shape) != shape:
            raise self.misshapen(name, values.shape)
        self.add_run(prefix, name, 0, self.wanted.numel(name), values, 0)

    def misshapen(self, name: str, got: tuple[int, ...]) -> UserError:
        """What to raise where `name` has another shape than the model's."""
        return UserError(
            f"{self.folder}: {name} is {list(got)}, but the model in the config has "
            f"{list(self.wanted.shape(name))}: give the config of the run that wrote it"
        )

    def add_run(
        self, prefix: str, name: str, start: int, numel: int, values: Values, at: int
    ) -> None:
        """Elements [start, start + numel) of the flattened parameter `name` (all experts) are those
        of `values` from `at` on."""
        if not all(type(n) is int for n in (start, numel, at)):
            raise ValueError(f"a place in {name} is no number")
        if not (0 <= start <= start + numel <= self.wanted.numel(name) and at >= 0):
            raise UserError(
                f"{self.folder}: elements [{start}, {start + numel}) of {name}, which has "
                f"{self.wanted.numel(name)} in the model of the config: give its run's config"
            )
        for logical, first, last in overlaps(self.wanted.logicals[name], start, numel):
            begin = at + logical.start + first - start
            self.add_logical(prefix, logical, Part(first, last - first, values, begin))

    def add_logical(self, prefix: str, logical: Logical, part: Part) -> None:
        """`part` of one logical tensor."""
        key = f"{prefix}/{logical.name}"
        self._shapes[key] = logical.shape
        self._parts[key].append(part)

    def source(self, step: int, meta: dict[str, Any]) -> "ForeignSource":
        """The checkpoint. Raises UserError if a parameter, or a part of the optimizer's state, is
        not there once."""
        for name, shape in self.wanted.buffers.items():
            if f"model/{name}" not in self._parts and name.endswith("router.bias"):
                # Other libraries have no bias where none balances.
                self.add("model", name, Zeros(torch.float32, shape))
        self._check_names()
        for key, shape in self._shapes.items():
            self._check_cover(key, math.prod(shape))
        tensors = {
            key: TensorInfo(parts[0].values.dtype, self._shapes[key])
            for key, parts in sorted(self._parts.items())
        }
        meta = {"model": self.wanted.config.model_dump(mode="json"), **meta}
        return ForeignSource(self.folder, tensors, self._parts, step, meta)

    def _check_names(self) -> None:
        names = [n for names in (self.wanted.parameters, self.wanted.buffers) for n in names]
        self._require("model", names)
        logicals = {t.name for name in self.wanted.parameters for t in self.wanted.logicals[name]}
        held = {prefix for key in self._parts for prefix in [key.rpartition("/")[0]]} - {"model"}
        for rule in RULES:
            if held.intersection(rule):
                mine = {key.rpartition("/")[2] for key in self._parts if key.startswith(rule)}
                for prefix in rule:
                    self._refuse_missing(prefix, mine)
                logicals -= mine
        if held and logicals:
            raise UserError(
                f"{self.folder}: no optimizer state of {min(logicals)}, but of other parameters: "
                "the checkpoint is not whole, or another model's; give the config of its run"
            )

    def _require(self, prefix: str, names: list[str]) -> None:
        self._refuse_missing(prefix, {t.name for n in names for t in self.wanted.logicals[n]})

    def _refuse_missing(self, prefix: str, names: set[str]) -> None:
        missing = [name for name in names if f"{prefix}/{name}" not in self._parts]
        if missing:
            raise UserError(
                f"{self.folder}: no {prefix}/{min(missing)} ({len(missing)} missing): the "
                "checkpoint is not whole, or another model's; give the config of its run"
            )

    def _check_cover(self, key: str, numel: int) -> None:
        parts, end = sorted(self._parts[key], key=lambda part: part.offset), 0
        for part in parts:
            if part.offset != end or part.values.dtype != parts[0].values.dtype:
                raise UserError(
                    f"{self.folder}: elements of {key} from {min(part.offset, end)} on are not "
                    "there once in one type: a file is missing, or files of two saves are mixed"
                )
            end = part.end
        if end != numel:
            raise UserError(
                f"{self.folder}: {key} has {end} of {numel} elements: restore the missing "
                "file, or give the config of the run that wrote it"
            )
        self._parts[key] = parts


class Steps:
    """The optimizer steps that the files say; all must agree."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._seen = folder, set[int]()

    def see(self, step: Any) -> None:
        """Note the step of one parameter or group: a number, a tensor, or None."""
        if step is not None:
            self._seen.add(self._whole(step.number() if isinstance(step, Stored) else step))
        if len(self._seen) > 1:
            raise UserError(
                f"{self._folder}: its files are of steps {min(self._seen)} and {max(self._seen)}: "
                f"files of two saves are mixed; {FIX}"
            )

    def last(self, counted: Any, meta: dict[str, Any]) -> int:
        """The run's step: the optimizer's, and the updates that the run refused; without an
        optimizer `counted`."""
        step = next(iter(self._seen), counted)
        return self._whole(step) + self._whole(meta.get("skipped", 0))

    def _whole(self, step: Any) -> int:
        if type(step) not in (int, float) or not 0 <= step < 2**53 or step != int(step):
            shown = step if isinstance(step, int | float) else type(step).__name__
            raise UserError(f"{self._folder}: a step is {shown}, no whole number: {FIX}")
        return int(step)


class ForeignSource:
    """A Source (see source.py): reads straight from the other library's files."""

    def __init__(
        self,
        folder: Path,
        tensors: dict[str, TensorInfo],
        parts: dict[str, list[Part]],
        step: int,
        meta: dict[str, Any],
    ) -> None:
        self.folder, self.tensors, self.meta, self.step = folder, tensors, meta, step
        self._parts = parts

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        """Elements [offset, offset + numel) of the flattened tensor, as a new 1-D CPU tensor.

        Raises UserError for what the checkpoint does not hold, and for damage.
        """
        info = self.tensors.get(name)
        if info is None:
            raise UserError(f"{self.folder}: no tensor {name!r}: the model or optimizer differs")
        size = math.prod(info.shape)
        end = size if numel is None else offset + numel
        if not 0 <= offset <= end <= size:
            raise UserError(f"{self.folder}: {name!r} has {size} elements, not [{offset}, {end})")
        result = torch.empty(end - offset, dtype=info.dtype)
        for part, first, last in self._meeting(name, offset, end):
            part.values.read_into(
                result[first - offset : last - offset], part.at + first - part.offset
            )
        return result

    def _meeting(self, name: str, offset: int, end: int) -> Iterator[tuple[Part, int, int]]:
        for part in self._parts[name]:
            first, last = max(offset, part.offset), min(end, part.end)
            if first < last:
                yield part, first, last
