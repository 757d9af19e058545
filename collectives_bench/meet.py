"""Where all ranks meet between measurements, agree, and find out who is missing.

All of it goes over Gloo groups of its own: nothing here touches the devices or what is measured.
"""

import re
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .origin import rank_and_world

FOLLOW_S = 5.0
"""The others leave so much later than rank 0, which alone knows who is missing."""
_LOST = re.compile(r"timed? ?out|connection|closed|reset|peer|abort", re.IGNORECASE)
"""In the errors of Gloo and NCCL about ranks that went away."""
_MISSING = re.compile(r"Ranks ([\d, ]+) failed to pass")


class Meeting:
    """All ranks of the default process group, or this one without any. Making one is collective.

    `timeout_s` is how long the others may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.rank, self.world = rank_and_world()
        self._side = self._group(timeout_s)
        # Its limit is each call's own; the group's would cut that short.
        self._roll = self._group(timeout_s + self.grace_s + 2 * FOLLOW_S)

    def _group(self, limit_s: float) -> dist.ProcessGroup | None:
        limit = timedelta(seconds=limit_s)
        return dist.new_group(backend="gloo", timeout=limit) if self.world > 1 else None

    @property
    def grace_s(self) -> float:
        """How much later the others may notice that a collective does not end."""
        return max(3.0, self.timeout_s / 4)

    def start(self, what: str) -> None:
        """Wait for all ranks; RuntimeError on rank 0 names those that did not come in time."""
        self._call(what, self.timeout_s)

    def end(self, what: str) -> None:
        """The same after a collective, in which the others may wait for their own time-out."""
        self._call(f"the end of {what}", self.timeout_s + self.grace_s)

    def blame(self, what: str, error: Exception) -> None:
        """After an error in a collective, where that means that this rank lost the others:
        RuntimeError names who did not come out of it."""
        if not isinstance(error, TimeoutError) and not _LOST.search(str(error)):
            return
        try:
            self._call(f"the end of {what}", self.grace_s, self.timeout_s)
        except RuntimeError as missing:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RuntimeError(f"{missing} ({first})") from error

    def _call(self, what: str, patience_s: float, said_s: float | None = None) -> None:
        if self._roll is None:
            return
        limit = patience_s if self.rank == 0 else patience_s + FOLLOW_S
        began = time.monotonic()
        try:
            dist.monitored_barrier(self._roll, timedelta(seconds=limit), wait_all_ranks=True)
        except RuntimeError as error:
            tail = f"did not reach {what} within {said_s or patience_s:g} s"
            found = _MISSING.search(str(error))
            if self.rank == 0 and found:
                message = f"{_names(found[1])} {tail}"
            elif self.rank and time.monotonic() - began > limit - FOLLOW_S / 2:
                message = f"rank 0 {tail}"
            else:
                # Rank 0's word comes first.
                time.sleep(FOLLOW_S if self.rank else 0)
                message = f"a rank left at {what}"
            # The barrier's own text is about its sockets.
            raise RuntimeError(message) from None

    def least(self, value: int) -> int:
        """The smallest of all ranks' values."""
        return int(self._agree(value, dist.ReduceOp.MIN))

    def most(self, value: float) -> float:
        """The largest of all ranks' values."""
        return self._agree(value, dist.ReduceOp.MAX)

    def _agree(self, value: float, op: dist.ReduceOp.RedOpType) -> float:
        if self._side is None:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(shared, op, group=self._side)
        return shared.item()

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        if self._side is not None:
            dist.broadcast_object_list(box, 0, group=self._side)
        return box[0]

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's value by rank, on rank 0; None elsewhere."""
        if self._side is None:
            return [value]
        found: list[Any] | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(value, found, group=self._side)
        return found


def _names(found: str) -> str:
    ranks = ", ".join(found.replace(",", " ").split())
    return f"{'ranks' if ',' in ranks else 'rank'} {ranks}"
