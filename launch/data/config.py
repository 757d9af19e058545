"""The configuration section that the data layer owns."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ... import UserError
from ...moe.config import Positive, Section


class DataConfig(Section):
    """What a run reads, and how much of it makes one optimizer step."""

    path: str = "data/python"
    """Folder made by `moelstrom data prepare`."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of the samples per domain, in any unit; a domain left out is not trained on. Empty:
    by training tokens."""
    seq_len: Positive = 512
    micro_batch_size: Positive = 8
    """Sequences of one forward pass on one rank."""
    global_batch_size: Positive = 32
    """Sequences of one optimizer step over all ranks."""
    tokenizer: str = "byte"
    """`byte`, or the path of a `tokenizer.json`."""
    corpus: Literal["python"] | None = None
    """`python` prepares the standard library's sources and documentation into `path` if the
    folder is missing."""

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        for domain, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{domain} is {weight}: a weight is 0 or more, 0 leaves it out")
        if weights and not any(weights.values()):
            raise ValueError(
                f"every weight is 0 ({', '.join(weights)}): give one domain a positive weight, or "
                "drop weights to go by tokens"
            )
        return weights

    @model_validator(mode="after")
    def _check_batch(self) -> "DataConfig":
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}, not a multiple of "
                f"micro_batch_size {self.micro_batch_size}: a step is a whole number of "
                "micro-batches"
            )
        return self


def microbatches(global_batch_size: int, micro_batch_size: int, dp: int) -> int:
    """Micro-batches of one optimizer step on each of `dp` ranks.

    Raises UserError if the ranks would not share the global batch evenly.
    """
    round_size = micro_batch_size * dp
    if global_batch_size % round_size:
        below = global_batch_size // round_size * round_size
        fits = f"{below} or {below + round_size}" if below else str(round_size)
        raise UserError(
            f"data.global_batch_size: {global_batch_size} is not a multiple of "
            f"data.micro_batch_size {micro_batch_size} x dp {dp}; set it to {fits}"
        )
    return global_batch_size // round_size
