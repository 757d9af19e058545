"""Documents on their way from files to tokens, and what was left out."""

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .files import open_regular

PIECE = 2**22
"""Characters of a document that are held in memory at once."""


class Document(NamedTuple):
    """One text, or a piece of a long one.

    Documents of one non-empty `group` are held out together. The pieces of a long document follow
    each other: `first` and `last` mark its ends.
    """

    text: str
    group: str = ""
    first: bool = True
    last: bool = True


Skip = Callable[[str, str], None]
"""Called with what is left out (a file, perhaps a line or row of it) and why."""
Read = Callable[[BinaryIO, Path, Skip], Iterator[Document]]


class TextSource:
    """The documents of `files`, as `read` finds them.

    `total` and `done` count bytes of the files. What cannot be read is left out and counted:
    `skipped` maps each reason to how often it applied and where it did first.
    """

    def __init__(self, files: list[Path], read: Read) -> None:
        self.read = read
        self.skipped: dict[str, tuple[int, str]] = {}
        self.files: list[Path] = []
        self.stamps: list[tuple[int, int]] = []
        for file in files:
            self._add(file)
        self.total = sum(size for size, _ in self.stamps)
        self.done = 0

    def _add(self, file: Path) -> None:
        try:
            status = file.stat()
        except OSError as error:
            self.skip(str(file), f"cannot be read ({error.strerror})")
            return
        if not stat.S_ISREG(status.st_mode):
            self.skip(str(file), "not a regular file")
            return
        self.files.append(file)
        self.stamps.append((status.st_size, status.st_mtime_ns))

    def skip(self, where: str, why: str) -> None:
        """Note something left out."""
        count, first = self.skipped.get(why, (0, where))
        self.skipped[why] = count + 1, first

    @property
    def skips(self) -> int:
        """How much was left out."""
        return sum(count for count, _ in self.skipped.values())

    def reasons(self) -> str:
        """Why something was left out, the most frequent reason first."""
        ordered = sorted(self.skipped.items(), key=lambda item: -item[1][0])
        return "; ".join(
            f"{where}: {why}" + (f" (and {count - 1:,} more)" if count > 1 else "")
            for why, (count, where) in ordered
        )

    def __iter__(self) -> Iterator[Document]:
        for file, (size, _) in zip(self.files, self.stamps, strict=True):
            start = self.done
            for document in self._documents(file, start):
                yield document._replace(text=_encodable(document.text))
            self.done = start + size

    def _documents(self, file: Path, start: int) -> Iterator[Document]:
        try:
            with open_regular(file) as opened:
                for document in self.read(opened, file, self.skip):
                    self.done = start + opened.tell()
                    yield document
        except UnicodeDecodeError:
            self.skip(str(file), "not UTF-8 text")
        except SyntaxError:
            self.skip(str(file), "not Python")
        except OSError as error:
            self.skip(str(file), f"cannot be read ({error.strerror or error})")


def pieces(text: str, group: str = "") -> Iterator[Document]:
    """A document in pieces of at most PIECE characters, cut at white space where there is any."""
    start = 0
    while len(text) - start > PIECE:
        end = cut(text, start + PIECE, start)
        yield Document(text[start:end], group, first=start == 0, last=False)
        start = end
    yield Document(text[start:], group, first=start == 0)


def cut(text: str, end: int, start: int = 0) -> int:
    """Where to cut a text at or before `end`: before a line, else before a word, else there."""
    middle = (start + end) // 2
    for space in ("\n", " "):
        if (place := text.rfind(space, middle, end)) > start:
            return place
    return end


def _encodable(text: str) -> str:
    """Without half surrogate pairs, which escapes can spell and no encoder takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
