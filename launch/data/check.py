"""Every token of a dataset lies within its vocabulary: looked at once, before training."""

import json
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ... import UserError
from .dataset import SPLITS, Dataset
from .files import read_regular
from .indexed import IndexedReader

NOTE = "checked.json"
"""What was found good: the dataset, and size and time of change of each .bin."""
CHUNK_TOKENS = 2**24
"""Looked at as one piece of work."""
WORKERS = min(8, os.cpu_count() or 1)


def check_ids(dataset: Dataset, places: Sequence[Path]) -> None:
    """Raise UserError for a token beyond the vocabulary, which a GPU would only assert.

    Reads whole files, once: what is good is noted in the first of the folders `places` that takes
    it, and believed until a file changes.
    """
    facts = _facts(dataset)
    if any(_noted(place) == facts for place in places):
        return
    for domain in dataset.domains:
        for split in SPLITS:
            _check(dataset.open(domain, split), dataset.vocab_size)
    _note(facts, places)


def note_checked(dataset: Dataset) -> None:
    """Note in the dataset's folder that the tokens written there are good."""
    _note(_facts(dataset), [dataset.path])


def _facts(dataset: Dataset) -> dict[str, Any]:
    files = {}
    for name in (f"{domain}-{split}.bin" for domain in dataset.domains for split in SPLITS):
        try:
            status = (dataset.path / name).stat()
            files[name] = [status.st_size, status.st_mtime_ns]
        except OSError:
            files[name] = []  # no note says so, and opening it will tell why
    return {"dataset": dataset.fingerprint, "vocab_size": dataset.vocab_size, "files": files}


def _noted(place: Path) -> Any:
    """An unreadable note is none: the files are looked at again."""
    try:
        return json.loads(read_regular(place / NOTE))
    except (OSError, ValueError, RecursionError):
        return None


def _note(facts: dict[str, Any], places: Sequence[Path]) -> None:
    for place in places:
        pending = place / f".{NOTE}.{uuid.uuid4().hex[:8]}"
        try:
            pending.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            pending.replace(place / NOTE)
            return
        except OSError:
            # A dataset may lie where this user cannot write.
            with suppress(OSError):
                pending.unlink()


def _check(reader: IndexedReader, vocab_size: int) -> None:
    limits = np.iinfo(reader.dtype)
    if limits.min >= 0 and limits.max < vocab_size:
        return

    def look(start: int) -> int | None:
        """Where the first bad id of a chunk is."""
        tokens = reader.tokens[start : start + CHUNK_TOKENS]
        # Without a copy; places are only sought where something is wrong.
        if tokens.max() < vocab_size and tokens.min() >= 0:
            return None
        return start + int(np.argmax((tokens >= vocab_size) | (tokens < 0)))

    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(look, range(0, len(reader.tokens), CHUNK_TOKENS))
        place = next((place for place in found if place is not None), None)
    if place is not None:
        raise UserError(
            f"{reader.bin_path}: token {place} has the id {reader.tokens[place]}, but the "
            f"vocabulary ends at {vocab_size - 1}; prepare the dataset again or restore the file"
        )
