"""The default corpus: the Python standard library's own text."""

import ast
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ... import UserError
from .corpus import walk
from .source import Document, Skip, TextSource

MAX_CODE_BYTES = 12_000_000
MIN_DOCSTRING = 80
"""Characters below which a docstring is no prose worth a document."""
NOT_CODE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
TABLES = {"encodings", "pydoc_data"}
"""Packages of generated tables."""


def python_sources() -> Mapping[str, TextSource]:
    """The default corpus, of this interpreter: standard library code, and its documentation."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files, size = [], 0
    for file in walk(root, without=NOT_CODE):
        if not _is_code(file.relative_to(root)) or not file.is_file():
            continue
        size += file.stat().st_size
        if size > MAX_CODE_BYTES:
            break
        files.append(file)
    if not files:
        raise UserError(f"data.corpus: {root} holds no .py file; prepare a folder of text instead")
    topics = root / "pydoc_data" / "topics.py"
    prose = [topics, *files] if topics.exists() else files
    return {"code": TextSource(files, _read_code), "prose": TextSource(prose, _read_prose)}


def _is_code(relative: Path) -> bool:
    # _sysconfigdata holds the build's own variables, which differ between machines.
    generated = relative.parts[0] in TABLES or relative.name.startswith("_sysconfigdata")
    return relative.suffix == ".py" and not generated


def _read_code(opened: BinaryIO, file: Path, skip: Skip) -> Iterator[Document]:
    yield Document(opened.read().decode("utf-8"), _module(file))


def _read_prose(opened: BinaryIO, file: Path, skip: Skip) -> Iterator[Document]:
    tree = ast.parse(opened.read())
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
            yield Document(text, group)


def _module(file: Path) -> str:
    """A module's code and docstrings repeat each other: held out together, neither leaks."""
    return "/".join(file.parts[-3:])
