"""What a Hugging Face folder says beyond its model: kept by an import, written back by an export.

Positions, special tokens, dropout, generation settings and the tokenizer's files have no place in
a model of ours. They stand in the checkpoint's meta, which a run hands on to its own checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .... import UserError
from ..foreign.pickles import shown
from ..plainfile import read_plain
from .architectures import Architecture, from_config
from .jsonfile import read_json

KEPT = "hf"
"""Its name in a checkpoint's meta."""
CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
MAX_TOKENIZER = 1 << 28
"""Bytes."""
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
POSITIONS = "max_position_embeddings"
SAID = (POSITIONS, *TOKENS)
"""What is kept even where a run changed the model to another class."""


def read_kept(folder: Path) -> dict[str, Any]:
    """{"folder", "config", "tokenizer"} of a Hugging Face folder, the last the names of its
    tokenizer's files, and, if there is one, "generation_config".

    Raises UserError for a file that is no JSON object.
    """
    kept: dict[str, Any] = {"folder": str(folder.resolve()), "config": read_json(folder / CONFIG)}
    kept["tokenizer"] = [name for name in TOKENIZER if (folder / name).exists()]
    if (folder / GENERATION).exists():
        kept["generation_config"] = read_json(folder / GENERATION)
    return kept


def merge_config(
    described: dict[str, Any], found: Architecture, kept: Mapping[str, Any], eos: int | None
) -> dict[str, Any]:
    """config.json: what the import read, with the fields of `described` (the model, as `found`
    computes it) in place of those that no longer hold. `eos`, if given, is the id that ends a text
    of another tokenizer: then the special tokens of the import's do not hold either."""
    before = kept.get("config", {})
    if before.get("model_type") != found.model_type:
        before = {field: before[field] for field in SAID if field in before}
    elif from_config(before, CONFIG) == from_config({**before, **described}, CONFIG):
        named = {field: described[field] for field in ("dtype", "torch_dtype") if field in before}
        described = named or {"dtype": described["dtype"]}
    tokens = {} if before and eos is None else {**dict.fromkeys(TOKENS), "eos_token_id": eos}
    return {**before, **described, **tokens}


def generation_config(kept: Mapping[str, Any], eos: int | None) -> dict[str, Any] | None:
    """generation_config.json: the import's, or one with `eos` if that is given; else none."""
    if eos is not None:
        return {"_from_model_config": True, "eos_token_id": eos}
    return kept.get("generation_config")


def tokenizer_files(kept: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer's files, by name, from where they were imported. Raises UserError."""
    found = {}
    for name in kept["tokenizer"]:
        file = Path(kept["folder"]) / name
        try:
            found[name] = read_plain(file, MAX_TOKENIZER, links=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: it was imported, but cannot be read now ({shown(error)}): put it back, "
                "or name another with --tokenizer"
            ) from None
    return found
