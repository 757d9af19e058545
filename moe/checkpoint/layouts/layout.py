"""A layout by name: which engine, and how its ranks share the model."""

from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from .... import UserError
from ...engines import ENGINES
from ...grid import Shape
from ...section import Positive
from ..manifest import explain


class StateLayout(Shape):
    """The layout that a checkpoint is read or written for: a grid of ranks under an engine."""

    engine: str = "native"
    zero: Annotated[int, Field(ge=0, le=3)] = 1
    """Megatron: 1 is its distributed optimizer."""
    bucket_mb: Positive = 64
    """The native engine's gradient bytes in one collective, in MiB: its shards are cut there."""

    @model_validator(mode="after")
    def _check_engine(self) -> "StateLayout":
        if self.engine not in ENGINES:
            names = ", ".join(ENGINES)
            raise ValueError(f"engine {self.engine!r} is none of the engines: give one of {names}")
        for problem in ENGINES[self.engine].problems(self, self.zero):
            raise ValueError(problem)
        return self


def make_target(**fields: Any) -> StateLayout:
    """A Target, with UserError for what its fields do not allow."""
    try:
        return StateLayout(**fields)
    except ValidationError as error:
        raise UserError(f"layout: {explain(error)}") from None
