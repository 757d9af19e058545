"""What a benchmark run leaves: one JSON document, versioned, and how it is read back.

Sizes are bytes, times seconds, bandwidths bytes a second. `SCHEMA` changes when a reader of the
old form would misread the new one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from .. import UserError
from .files import parse_json, read_bytes

SCHEMA = "moelstrom.bench/1"

Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1e24, allow_inf_nan=False)]
Amount = Annotated[int, Field(ge=0, le=2**62)]
Rank = Annotated[int, Field(ge=0, le=2**24)]
Number = Annotated[int, Field(ge=1, le=2**31)]
Ranks = Annotated[list[Rank], Field(min_length=1)]


@dataclass(frozen=True)
class RankTimes:
    """One rank's times over the iterations."""

    rank: Rank
    mean_s: Seconds
    p50_s: Seconds
    p95_s: Seconds
    max_s: Seconds


@dataclass(frozen=True)
class Collective:
    """One operation at one size in one group.

    `bytes` is nccl-tests' size (for all-gather and reduce-scatter the full buffer); `mean_s` the
    mean over iterations, averaged over ranks, as there; `algbw` and `busbw` follow from it. p50,
    p95 and max are over iterations, of each iteration's slowest rank. `wrong` counts wrong elements
    over all ranks (None: not checked). `at_once` is how many such groups ran together.
    """

    op: str
    dtype: str
    in_place: bool
    group: str
    ranks: Ranks
    at_once: Number
    load: str | None
    bytes: Amount
    count: Amount
    iterations: Number
    mean_s: Seconds
    p50_s: Seconds
    p95_s: Seconds
    max_s: Seconds
    algbw: Rate
    busbw: Rate
    wrong: Amount | None
    per_rank: list[RankTimes]


@dataclass(frozen=True)
class Hardware:
    """One measurement of one device.

    `bench`: memory, gemm, attention or copy; `shape` its sizes by name (bytes; M, N, K; ...);
    `rate` in `unit` ("B/s" or "FLOP/s") from the median time.
    """

    bench: str
    kind: str
    dtype: str
    shape: dict[str, Amount]
    rank: Rank
    iterations: Number
    p50_s: Seconds
    p95_s: Seconds
    max_s: Seconds
    rate: Rate
    unit: Literal["B/s", "FLOP/s"]


@dataclass(frozen=True)
class Skip:
    """What was not measured, and why (out of memory, not offered by the backend...)."""

    what: str
    bytes: Amount
    reason: str


@dataclass(frozen=True)
class Host:
    """A node: its name, the ranks on it, its device and how many it has; bytes of memory and of the
    last-level cache of each device (0: not known)."""

    name: str
    ranks: Ranks
    device: str
    devices: Amount
    memory: Amount = 0
    cache: Amount = 0


@dataclass
class BenchReport:
    """A whole run. `ended` is "complete", or says which rank failed, how, and at what."""

    kind: Literal["collectives", "hardware"]
    started: str
    command: str
    backend: str
    world_size: Amount
    hosts: list[Host]
    versions: dict[str, str]
    config: dict[str, Any]
    collectives: list[Collective] = field(default_factory=list)
    hardware: list[Hardware] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    analysis: dict[str, Any] = field(default_factory=dict)
    ended: str = "running"
    schema: str = SCHEMA

    def write(self, path: Path) -> None:
        """Replace `path` by this report, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


_ADAPTER = TypeAdapter(BenchReport)


def read(path: Path) -> BenchReport:
    """Read a report; a UserError says what is wrong with the file."""
    data = read_bytes(path, str(path), "give a report that `moelstrom bench` wrote")
    try:
        found = parse_json(data)
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error}); measure again, or restore the file") from None
    if not isinstance(found, Mapping) or found.get("schema") != SCHEMA:
        raise UserError(f"{path}: schema: must be {SCHEMA!r}; measure again with this version")
    try:
        return _ADAPTER.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; measure again") from None
