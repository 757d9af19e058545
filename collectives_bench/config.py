"""What to measure of the network."""

import re
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .groups import KINDS, parse_groups
from .loads import check_load
from .operators import OPERATORS
from .sizes import Bytes

DtypeName = Literal["fp64", "fp32", "bf16", "fp16", "int64", "int32", "int8", "uint8"]
_INJECT = re.compile(r"(\d+):(\w+|\*):(\d+(?:\.\d+)?)")


class CollectivesConfig(BaseModel):
    """Unknown fields are errors; None takes the device's default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ops: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default_factory=lambda: (*OPERATORS,)
    )
    dtypes: Annotated[tuple[DtypeName, ...], Field(min_length=1)] = ("fp32",)
    in_place: bool | Literal["both"] = "both"
    """Of the two forms, where torch.distributed has both."""
    min_bytes: Bytes = 1024
    max_bytes: Bytes | None = None
    """None: 1 GiB (GPU), 64 MiB (CPU). Sizes are nccl-tests': of the full buffer."""
    factor: Annotated[int, Field(ge=2)] = 2
    """From one size to the next."""

    groups: Annotated[tuple[str, ...], Field(min_length=1)] = ("world",)
    """`world`; `node`: the ranks of each host; `rail`: the k-th rank of every host; `counts`: the
    first 2, 3, ... ranks of the first host; `pairs`: every two ranks (send_recv only); or ranks,
    `0,1;2,3`: groups apart that run at once."""
    at_once: bool | Literal["both"] = "both"
    """Where a kind has several groups: all together (true), the first of them alone (false)."""
    loads: Annotated[tuple[str, ...], Field(min_length=1)] = ("balanced",)
    """Of all_to_all_v: `balanced`; `zipf:S`: experts of popularity 1 / k^S; `log:PATH`: the
    experts' loads in a training run's metrics.jsonl; `matrix:PATH`: relative bytes, a row for each
    sender."""

    warmup: Annotated[int, Field(ge=0)] = 1
    iterations: Annotated[int, Field(ge=1)] = 20
    budget_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds of timed iterations: slow points get fewer of them, but not fewer than 5."""
    check: bool = True
    """Compare every element of one call's result, at each size, before it is timed."""
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of the free memory that one point may take; larger ones are skipped."""
    timeout_s: Annotated[float, Field(ge=1)] = 60.0
    """How long a rank waits for the others in a collective, before it says who is missing."""
    inject: str | None = None
    """`RANK:OP:SECONDS` (OP `*`: all): a rank that comes late, to see that it is found."""
    seed: int = 0
    """Of the values that are sent, and of which experts are popular."""

    @field_validator("ops")
    @classmethod
    def _check_ops(cls, ops: tuple[str, ...]) -> tuple[str, ...]:
        for name in ops:
            if name not in OPERATORS:
                raise ValueError(f"{name!r}: give some of {', '.join(OPERATORS)}")
        return ops

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        for text in groups:
            if text not in KINDS:
                parse_groups(text)
        return groups

    @field_validator("loads")
    @classmethod
    def _check_loads(cls, loads: tuple[str, ...]) -> tuple[str, ...]:
        for text in loads:
            check_load(text)
        return loads

    @field_validator("inject")
    @classmethod
    def _check_inject(cls, text: str | None) -> str | None:
        if text is not None:
            found = _INJECT.fullmatch(text)
            if not found or not (found[2] == "*" or found[2] in OPERATORS):
                raise ValueError(f"{text!r}: give RANK:OP:SECONDS, such as 2:all_reduce:0.01")
        return text

    @model_validator(mode="after")
    def _check(self) -> "CollectivesConfig":
        if self.max_bytes is not None and self.max_bytes < self.min_bytes:
            raise ValueError(
                f"max_bytes is {self.max_bytes}, below min_bytes {self.min_bytes}: raise it"
            )
        if "pairs" in self.groups and "send_recv" not in self.ops:
            raise ValueError("groups has pairs, which measure send_recv: add it to ops")
        if self.budget_s > self.timeout_s / 2:
            # A GPU's calls are queued: the last one waits for all others.
            raise ValueError(
                f"budget_s is {self.budget_s}, above half of timeout_s {self.timeout_s}: lower it, "
                "or raise timeout_s"
            )
        return self

    def sizes(self, device: torch.device) -> list[int]:
        """Bytes in ascending order."""
        default = 2**26 if device.type == "cpu" else 2**30
        limit = self.max_bytes or max(default, self.min_bytes)
        sizes = [self.min_bytes]
        while sizes[-1] * self.factor <= limit:
            sizes.append(sizes[-1] * self.factor)
        return sizes

    def sleep(self, rank: int, op: str) -> float:
        """Seconds that `rank` is late for each iteration of `op`."""
        if self.inject is None:
            return 0.0
        late, name, seconds = self.inject.split(":")
        return float(seconds) if rank == int(late) and name in (op, "*") else 0.0
