"""Where a domain's text comes from: a user's folder or file."""

import os
from collections.abc import Collection
from pathlib import Path

from ... import UserError
from .formats import Format, reader
from .source import TextSource


def folder_source(domain: str, path: Path, form: Format = "auto") -> TextSource:
    """The documents of the files below `path`, or of the one file `path`, in the order of their
    names, read as `form` says.

    Hidden files and linked folders are left out. Raises UserError if there is no file.
    """
    if not path.exists():
        raise UserError(f"domain {domain}: {path} does not exist; give a folder of text files")
    if path.is_dir():
        files = walk(path)
    elif path.is_file():
        files = [path]
    else:
        raise UserError(
            f"domain {domain}: {path} is no folder and no regular file; give a folder of text files"
        )
    if not files:
        raise UserError(f"domain {domain}: {path} holds no file; give a folder of text files")
    return TextSource(files, reader(form))


def walk(root: Path, *, without: Collection[str] = ()) -> list[Path]:
    """Sorted visible names below `root` but folders; linked folders and those named in `without`
    are not entered. Raises UserError for a folder that cannot be read."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); fix its permissions")

    found = []
    for folder, children, names in os.walk(root, onerror=fail):
        children[:] = [c for c in children if not c.startswith(".") and c not in without]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)
