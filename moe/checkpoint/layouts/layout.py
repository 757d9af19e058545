"""A layout by name: which engine, and how its ranks share the model."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from .... import UserError
from ...config import Positive, Section
from ..manifest import explain


@dataclass(frozen=True)
class Place:
    """One rank's coordinates: pipeline stage, tensor-parallel rank, and which of the
    dp x cp ranks with the same dense weights it is."""

    stage: int
    tensor: int
    replica: int


class Target(Section):
    """The layout that a checkpoint is read or written for.

    Ranks count as in Megatron: tensor parallel innermost, then context, data, and pipeline
    outermost. Context-parallel ranks hold what data-parallel ranks hold, and ZeRO shards over
    both. Of these dp x cp ranks each `ep` consecutive ones hold every expert once.
    """

    engine: Literal["native", "deepspeed", "megatron"] = "native"
    dp: Positive = 1
    ep: Positive = 1
    tp: Positive = 1
    pp: Positive = 1
    cp: Positive = 1
    zero: Annotated[int, Field(ge=0, le=3)] = 1
    """Megatron: 1 is its distributed optimizer."""
    bucket_mb: Positive = 64
    """The native engine's gradient bytes in one collective, in MiB: its shards are cut there."""

    @model_validator(mode="after")
    def _check(self) -> "Target":
        if self.replicas % self.ep:
            raise ValueError(
                f"ep is {self.ep}, which does not divide dp x cp {self.replicas}: expert "
                "parallelism splits these ranks, so set dp to a multiple of ep"
            )
        if self.engine != "deepspeed" and self.zero > 1:
            raise ValueError(
                f"zero is {self.zero}, but engine {self.engine} shards the optimizer only: set "
                "zero to 1, or engine to deepspeed"
            )
        if self.engine == "deepspeed" and self.zero > 1 and self.pp > 1:
            raise ValueError(
                f"zero is {self.zero} with pp {self.pp}: DeepSpeed's pipeline accumulates whole "
                "gradients, so set zero to 1, or pp to 1"
            )
        return self

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense weights."""
        return self.dp * self.cp

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.replicas * self.tp * self.pp

    def place(self, rank: int) -> Place:
        """Where `rank` stands."""
        outer, tensor = divmod(rank, self.tp)
        stage, replica = divmod(outer, self.replicas)
        return Place(stage, tensor, replica)

    def rank(self, place: Place) -> int:
        """The rank that stands there; the inverse of `place`."""
        return (place.stage * self.replicas + place.replica) * self.tp + place.tensor


def make_target(**fields: Any) -> Target:
    """A Target, with UserError for what its fields do not allow."""
    try:
        return Target(**fields)
    except ValidationError as error:
        raise UserError(f"layout: {explain(error)}") from None
