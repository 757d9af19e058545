"""A JSON file of a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

from .... import UserError
from ..foreign.pickles import shown
from ..foreign.records import plain
from ..plainfile import read_plain

MAX_JSON = 1 << 22
"""Bytes: a config.json has some thousands."""


def read_json(file: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes; UserError names the file."""
    try:
        found = plain(json.loads(read_plain(file, limit, links=True)))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a Hugging Face model's folder") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({shown(error)}); download the model again") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a JSON object; download the model again")
    return found
