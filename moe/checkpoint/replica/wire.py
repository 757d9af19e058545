"""Files between ranks, over a gloo group of their own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import folder as disk
from ..channel import RankChannel
from .plan import Move

CHUNK = 16 << 20
"""Bytes of one message."""


class Wire(RankChannel):
    """A channel that also sends files; making it is collective."""

    def exchange(self, moves: Sequence[Move], folder: Path) -> dict[str, str]:
        """Carry out this rank's part of `moves` at once; files come from and go to `folder`.

        Every rank calls it with the same moves. Returns what went wrong here, by file: a file that
        cannot be read or written still takes part, since the other side waits. Raises RuntimeError
        if a rank is lost.
        """
        self._check_open()
        started = [
            self._start(move, folder) for move in moves if self._rank in (move.source, move.target)
        ]
        problems = {}
        for transfer in started:
            for work in transfer.works:
                work.wait()
            problems[transfer.move.file] = transfer.problem
            if transfer.partial is not None and not transfer.problem:
                transfer.partial.replace(folder / transfer.move.file)
        return {file: problem for file, problem in problems.items() if problem}

    def _start(self, move: Move, folder: Path) -> "_Transfer":
        # Between two ranks messages arrive in the order in which they were posted: that of `moves`.
        if self._rank == move.source:
            data, problem = _outgoing(folder / move.file, move.size)
            works = [dist.isend(p, move.target, group=self._group) for p in data.split(CHUNK)]
            return _Transfer(move, data, works, problem, None)
        partial = folder / f"{move.file}.partial"
        data, problem = _incoming(partial, move.size)
        works = [dist.irecv(p, move.source, group=self._group) for p in data.split(CHUNK)]
        return _Transfer(move, data, works, problem, partial)


@dataclass(frozen=True)
class _Transfer:
    """One move under way; `data` stays mapped until its works are done."""

    move: Move
    data: torch.Tensor
    works: list[Any]
    problem: str
    partial: Path | None


def _outgoing(file: Path, size: int) -> tuple[torch.Tensor, str]:
    try:
        return _mapped(file, size), ""
    except (OSError, ValueError, RuntimeError) as error:
        # The receiver will see by the hash that these zeros are not the file.
        return torch.zeros(size, dtype=torch.uint8), f"{file}: {error}"


def _incoming(file: Path, size: int) -> tuple[torch.Tensor, str]:
    try:
        return _reserved(file, size), ""
    except (OSError, RuntimeError) as error:
        file.unlink(missing_ok=True)
        return torch.empty(size, dtype=torch.uint8), f"{file}: {error}"


def _mapped(file: Path, size: int) -> torch.Tensor:
    """The file's bytes in place."""
    found = disk.regular_size(file)
    if found != size:
        raise ValueError(f"{found} bytes for {size}")
    return torch.from_file(str(file), size=size, dtype=torch.uint8)


def _reserved(file: Path, size: int) -> torch.Tensor:
    """The bytes of a new file in place; memory that is full refuses it here, and not by a signal
    at the first write."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, size)
    finally:
        os.close(handle)
    return torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8)
