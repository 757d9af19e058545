"""How many rows the embedding gets for a tokenizer."""

from .. import UserError
from .config import ModelConfig

VOCAB_MULTIPLE = 64
"""Vocabularies are padded to this: GEMM widths then fill whole tiles."""


def sized(model: ModelConfig, tokens: int) -> ModelConfig:
    """The model with its vocabulary set for a tokenizer of `tokens`.

    Raises UserError where `model.vocab_size` is given and does not hold them.
    """
    if model.vocab_size == 0:
        padded = -(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        return model.model_copy(update={"vocab_size": padded})
    if model.vocab_size < tokens:
        raise UserError(
            f"model.vocab_size: {model.vocab_size} is below the tokenizer's {tokens} tokens; "
            "raise it, or set 0 to fit"
        )
    return model
