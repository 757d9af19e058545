"""Where documents come from: a user's folder, or the Python standard library."""

import ast
import json
import os
import sysconfig
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ... import UserError

MAX_CODE_BYTES = 12_000_000
MIN_DOCSTRING = 80
"""Characters below which a docstring is no prose worth a document."""
NOT_CODE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
TABLES = {"encodings", "pydoc_data"}
"""Packages of generated tables."""


class Document(NamedTuple):
    """One text; `size` is the source bytes it took, for progress.

    Documents of one non-empty `group` are held out together.
    """

    text: str
    size: int
    group: str = ""


Skip = Callable[[str], None]
Read = Callable[[Path, Skip], Iterator[Document]]


class Source:
    """The documents of `files`, as `read` finds them.

    `total` and `done` count source bytes. What cannot be read is left out, counted in `skipped`;
    `reasons` keeps the first few.
    """

    def __init__(self, files: list[Path], read: Read) -> None:
        self.files = files
        self.read = read
        self.sizes = [file.stat().st_size for file in files]
        self.total = sum(self.sizes)
        self.done = 0
        self.skipped = 0
        self.reasons: list[str] = []

    def skip(self, reason: str) -> None:
        """Note something left out."""
        self.skipped += 1
        if len(self.reasons) < 3:
            self.reasons.append(reason)

    def __iter__(self) -> Iterator[Document]:
        for file, size in zip(self.files, self.sizes, strict=True):
            end = self.done + size
            try:
                for document in self.read(file, self.skip):
                    self.done += document.size
                    yield document._replace(text=_encodable(document.text))
            except UnicodeDecodeError:
                self.skip(f"{file}: not UTF-8 text")
            except SyntaxError as error:
                self.skip(f"{file}: not Python ({error.msg})")
            except OSError as error:
                self.skip(f"{file}: cannot be read ({error.strerror})")
            self.done = end


def folder_source(domain: str, path: Path) -> Source:
    """Text files below `path`, or the one file `path`, in the order of their names.

    A `.jsonl` holds one document per line, in its field `text`; any other file is one document.
    Hidden files and linked folders are left out. Raises UserError if there is no file.
    """
    if not path.exists():
        raise UserError(f"domain {domain}: {path} does not exist; give a folder of text files")
    files = [path] if path.is_file() else _walk(path)
    if not files:
        raise UserError(f"domain {domain}: {path} holds no file; give a folder of text files")
    return Source(files, _read_text)


def python_sources() -> Mapping[str, Source]:
    """The default corpus, of this interpreter: standard library code, and its documentation."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files, size = [], 0
    for file in _walk(root, without=NOT_CODE):
        if not _is_code(file.relative_to(root)):
            continue
        size += file.stat().st_size
        if size > MAX_CODE_BYTES:
            break
        files.append(file)
    if not files:
        raise UserError(f"data.corpus: {root} holds no .py file; prepare a folder of text instead")
    topics = root / "pydoc_data" / "topics.py"
    prose = [topics, *files] if topics.exists() else files
    return {"code": Source(files, _read_code), "prose": Source(prose, _read_prose)}


def _encodable(text: str) -> str:
    """Without half surrogate pairs, which escapes can spell and no encoder takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _walk(root: Path, *, without: Collection[str] = ()) -> list[Path]:
    """Sorted visible files below `root`; linked folders and those named in `without` are not
    entered. Raises UserError for a folder that cannot be read."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); fix its permissions")

    found = []
    for folder, children, names in os.walk(root, onerror=fail):
        children[:] = [c for c in children if not c.startswith(".") and c not in without]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _is_code(relative: Path) -> bool:
    # _sysconfigdata holds the build's own variables, which differ between machines.
    generated = relative.parts[0] in TABLES or relative.name.startswith("_sysconfigdata")
    return relative.suffix == ".py" and not generated


def _read_text(file: Path, skip: Skip) -> Iterator[Document]:
    if file.suffix == ".jsonl":
        yield from _read_lines(file, skip)
        return
    data = file.read_bytes()
    if b"\0" in data:
        skip(f"{file}: a binary file")
        return
    yield Document(data.decode("utf-8-sig"), len(data))


def _read_lines(file: Path, skip: Skip) -> Iterator[Document]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, TypeError, KeyError):
                text = None
            if isinstance(text, str):
                yield Document(text, len(line))
            else:
                skip(f"{file}:{number}: no JSON object with a string `text`")


def _read_code(file: Path, skip: Skip) -> Iterator[Document]:
    data = file.read_bytes()
    yield Document(data.decode("utf-8"), len(data), _module(file))


def _read_prose(file: Path, skip: Skip) -> Iterator[Document]:
    tree = ast.parse(file.read_bytes())
    if file.name == "topics.py":
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        texts = [text for text in strings if isinstance(text, str)]
        group = ""
    else:
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
        texts = [ast.get_docstring(node) or "" for node in nodes]
        group = _module(file)
    for text in texts:
        if len(text) >= MIN_DOCSTRING:
            yield Document(text, 0, group)


def _module(file: Path) -> str:
    """A module's code and docstrings repeat each other: held out together, neither leaks."""
    return "/".join(file.parts[-3:])
