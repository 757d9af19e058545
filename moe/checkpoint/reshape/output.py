"""The files of a checkpoint that is being made: written in place, and read back after a kill."""

import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from .... import UserError
from .. import folder as disk
from ..shardfile import ShardFile
from ..tensorfile import TensorFile
from .plan import PlanPart, ReshapePlan

SPARE_FILES = 64


class OutputFolder:
    """The plan's files under `folder`; data that is there already stays until it is written over.

    Raises OSError, at once where the disk has no room for all.
    """

    def __init__(self, folder: Path, plan: ReshapePlan) -> None:
        self._folder, self._plan = folder, plan
        self._files: dict[int, TensorFile] = {}
        files = plan.files()
        allow_files(2 * len(files) + SPARE_FILES)
        try:
            for rank, infos in files.items():
                path = folder / disk.shard_name(rank)
                self._files[rank] = TensorFile(path, infos, keep=True)
        except BaseException:
            self.abandon()
            raise

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {disk.shard_name(rank): file.size for rank, file in self._files.items()}

    def write(self, part: PlanPart, begin: int, data: np.ndarray) -> None:
        """Write the elements of `part` from its own element `begin` on."""
        self._files[part.rank].write_bytes(part.key, data.view(np.uint8).data, begin)

    def sha256(self, part: PlanPart, buffer: memoryview) -> str:
        """Of what the part's place holds now."""
        return ShardFile(self._folder / disk.shard_name(part.rank)).sha256(part.key, buffer)

    def finish(self) -> None:
        """Flush all files to disk and close them."""
        with ThreadPoolExecutor(self._plan.readers) as pool:
            list(pool.map(lambda file: file.close(), self._files.values()))

    def abandon(self) -> None:
        """Close without flushing."""
        for file in self._files.values():
            with suppress(OSError):
                file.abandon()


def allow_files(count: int) -> None:
    """Let the process open `count` files. Raises UserError where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and count > hard:
        raise UserError(f"{count} open files are needed, {hard} are allowed: raise `ulimit -Hn`")
    if soft != resource.RLIM_INFINITY and count > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


Progress = Callable[[int, int], None]
"""Takes bytes done and in all."""
