"""Values of `cluster.env` that stand elsewhere: `env:NAME` and `file:PATH`, read on the node when a
worker starts, so that a secret is in no config, manifest, log or command line."""

import re
from collections.abc import Mapping
from pathlib import Path

from .. import UserError

MOST_BYTES = 65536
# TOKENIZERS_PARALLELISM and MAX_TOKENS hold none, nor does NCCL_IB_PKEY, InfiniBand's partition.
_SECRET = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|_PWD$|TOKEN(?![A-Z])"
    r"|(^|_)(API|ACCESS|PRIVATE|SSH)?KEYS?(_|$)",
    re.IGNORECASE,
)
_PLACE = re.compile(r"_(FILE|PATH|DIR)$", re.IGNORECASE)


def is_reference(value: str) -> bool:
    """Whether a value says where it stands, and not what it is."""
    return value.startswith(("env:", "file:"))


def in_clear(env: Mapping[str, str]) -> list[str]:
    """Names of what looks like a secret and is no reference."""
    return [name for name, value in env.items() if _is_secret(name) and not is_reference(value)]


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _PLACE.search(name)


def resolve(env: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    """`env` with what its references stand for, by this node's environment `here` and its files.
    Raises UserError that names the field and the reference, never the value."""
    return {name: _value(name, value, here) for name, value in env.items()}


def _value(name: str, value: str, here: Mapping[str, str]) -> str:
    kind, _, place = value.partition(":")
    if not is_reference(value):
        return value
    if kind == "env":
        if place not in here:
            raise UserError(
                f"cluster.env.{name}: {value}: no such variable on the worker's node; set it there "
                "before the cluster starts, or use file:PATH"
            )
        return here[place]
    return _read(name, Path(place))


def _read(name: str, path: Path) -> str:
    try:
        # A pipe or a device could hold the worker's start up for ever.
        if path.exists() and not path.is_file():
            raise UserError(f"cluster.env.{name}: file:{path}: is no plain file; name one")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1).decode().rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise UserError(
            f"cluster.env.{name}: file:{path}: {reason} on the worker's node; name a readable file"
        ) from None
    if len(text) > MOST_BYTES or "\0" in text:
        raise UserError(f"cluster.env.{name}: file:{path}: holds no value of a variable")
    return text
