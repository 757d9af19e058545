"""Values that tell a wrong result: every rank's are its own, and vary with the position.

They are small integers, which every dtype holds exactly, sums over all ranks included. A rank's
values are a random code over `CLASSES` classes; a position's class is random too, with a period
that is prime, so that no shift by a whole chunk goes unseen.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch

CLASSES = 256
PERIOD = 65537
BLOCK = 2**25
"""Elements that are compared at once: the comparison's own memory."""
EXACT = {
    torch.float64: 2**24,
    torch.float32: 2**24,
    torch.bfloat16: 2**8,
    torch.float16: 2**11,
    torch.int64: 2**24,
    torch.int32: 2**24,
    torch.int8: 127,
    torch.uint8: 127,
}
"""The integers up to here are exact."""
SUM = -1
"""In place of a rank: the sum over the group."""


def poison(buffer: torch.Tensor) -> None:
    """Fill with what no code holds, so that bytes that never arrived show."""
    buffer.fill_(255 if buffer.dtype == torch.uint8 else -1)


class Codes:
    """The values of the ranks of one group; `ranks` are global, rows are by place in the group."""

    def __init__(self, ranks: Sequence[int], dtype: torch.dtype, seed: int) -> None:
        self._ranks, self._dtype, self._seed = tuple(ranks), dtype, seed

    def fill(self, buffer: torch.Tensor, row: int) -> None:
        """Write what the rank at place `row` sends from position 0 on."""
        pattern = self._pattern(row, 0, len(buffer)).to(buffer.device)
        for block, expected in _blocks(buffer, pattern):
            block.copy_(expected)

    def wrong(self, buffer: torch.Tensor, row: int, start: int = 0) -> int:
        """Elements of `buffer` that differ from the values of `row` (SUM: of the sum) from
        position `start` on."""
        pattern = self._pattern(row, start, len(buffer)).to(buffer.device)
        return sum(int((block != expected).sum()) for block, expected in _blocks(buffer, pattern))

    def _pattern(self, row: int, start: int, length: int) -> torch.Tensor:
        """The values from `start` on, as far as `length` or one period."""
        codes = self._summed if row == SUM else self._single[row]
        first = start % PERIOD
        return codes[self._classes[first : first + min(length, PERIOD)]]

    @cached_property
    def _classes(self) -> torch.Tensor:
        """Of two periods, so that one can begin anywhere."""
        return torch.randint(CLASSES, (PERIOD,), generator=self._generator(0)).repeat(2)

    @cached_property
    def _single(self) -> torch.Tensor:
        """[ranks, CLASSES], small enough that the sum is exact."""
        n, limit = len(self._ranks), EXACT[self._dtype]
        values = max(2, limit // n + 1)
        # Rows by global rank: another group's bytes are wrong here too.
        shape = (max(self._ranks) + 1, CLASSES)
        table = torch.randint(values, shape, generator=self._generator(1))[list(self._ranks)]
        if n > limit:
            # Not even ones may be summed over all: each class takes `limit` of the ranks.
            place = torch.arange(n)[:, None] + torch.arange(CLASSES) * (n // CLASSES + 1)
            table *= place % n < limit
        return table.to(self._dtype)

    @cached_property
    def _summed(self) -> torch.Tensor:
        return self._single.to(torch.int64).sum(dim=0).to(self._dtype)

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(2 * self._seed + stream)


def _blocks(
    buffer: torch.Tensor, pattern: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`buffer` in parts, each with the values that broadcast against it."""
    rows = BLOCK // PERIOD
    whole = len(buffer) // PERIOD * PERIOD
    for part in buffer[:whole].split(rows * PERIOD):
        if len(part):
            yield part.view(-1, PERIOD), pattern
    rest = buffer[whole:]
    if len(rest):
        yield rest, pattern[: len(rest)]
