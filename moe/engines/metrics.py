"""Sums over the global batch that every engine needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..batch import IGNORE, Batch
from ..grid import Grid
from ..model import Loads, Model, ModelOutput
from ..stages import waiting
from .base import StepMetrics


@dataclass(frozen=True)
class Totals:
    """`targets` and `sequences` in the global batch."""

    targets: int
    sequences: int

    def loss(self, out: ModelOutput) -> torch.Tensor:
        """This micro-batch's part of the global mean loss.

        Dividing by global counts makes the right gradient the plain sum over all ranks and
        micro-batches, for experts too: the all-to-all's backward pass already adds what the
        expert-parallel ranks sent.
        """
        return out.loss_sum / self.targets + out.aux_sum / self.sequences


def count_totals(batches: Sequence[Batch], grid: Grid, device: torch.device) -> Totals:
    """Count the global batch; collective over the replicas."""
    targets = sum(int((b.targets != IGNORE).sum()) for b in batches)
    sequences = sum(b.tokens.shape[0] for b in batches)
    counts = torch.tensor([targets, sequences], device=device)
    with waiting():
        dist.all_reduce(counts, group=grid.replicas.group)
        return Totals(*(max(n, 1) for n in counts.tolist()))


class Tally:
    """Adds up the outputs of a step's micro-batches without waiting for the device."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._sums: torch.Tensor | None = None
        self._sizes: list[int] = []

    def add(self, out: ModelOutput) -> None:
        """Take one micro-batch's sums."""
        losses = torch.stack([out.loss_sum.detach(), out.aux_sum.detach()]).double()
        sums = torch.cat([losses, *(load.double() for load in out.loads)])
        self._sizes = [load.numel() for load in out.loads]
        self._sums = sums if self._sums is None else self._sums + sums

    def reduce(self, grid: Grid, leave: bool = False) -> None:
        """Add over all replicas, and count how many want to `leave`; collective."""
        assert self._sums is not None
        # Made by a kernel: a copy from the host would wait for the device.
        wish = torch.full_like(self._sums[:1], float(leave))
        self._sums = torch.cat([wish, self._sums])
        with waiting():
            dist.all_reduce(self._sums, group=grid.replicas.group)

    def loads(self) -> list[torch.Tensor]:
        """Of each layer with experts [E] int64: the global batch's tokens of each, after `reduce`;
        on the device."""
        assert self._sums is not None
        return [load.long() for load in self._sums[3:].split(self._sizes)]

    def loss(self) -> float:
        """The mean loss of the global batch, after `reduce`; waits for the device."""
        assert self._sums is not None
        with waiting():
            return self._sums[1].item() / self._totals.targets

    def metrics(self, norm: torch.Tensor | float, lr: float, applied: bool) -> StepMetrics:
        """What the step did, after `reduce`; waits for the device."""
        assert self._sums is not None
        with waiting():
            sums, norm = self._sums.cpu(), float(norm)
        wishes, loss, aux = sums[:3].tolist()
        return StepMetrics(
            loss=loss / self._totals.targets,
            aux_loss=aux / self._totals.sequences,
            grad_norm=norm,
            lr=lr,
            tokens=self._totals.targets,
            expert_load=[load.long() for load in sums[3:].split(self._sizes)],
            skipped=not applied,
            leave=wishes > 0,
        )


@torch.no_grad()
def count_loads(
    model: Model,
    forward: Callable[[Batch], ModelOutput],
    batches: Sequence[Batch],
    grid: Grid,
    device: torch.device,
) -> Loads:
    """The global batch's loads, where a router of `model` balances over it and this rank's share
    comes in several micro-batches: one forward pass over all of them. Else nothing, and a router
    adds up what the ranks' only micro-batches give it. Collective over the replicas."""
    if len(batches) == 1 or not model.counts_batch:
        return ()
    outputs = [forward(batch.to(device)) for batch in batches]
    loads = [torch.stack(each).sum(0) for each in zip(*(o.loads for o in outputs), strict=True)]
    with waiting():
        for load in loads:
            dist.all_reduce(load, group=grid.replicas.group)
    return tuple(loads)


@torch.no_grad()
def evaluate(
    model: Callable[[Batch], ModelOutput],
    batches: Sequence[Batch],
    grid: Grid,
    device: torch.device,
) -> tuple[float, int]:
    """Summed cross-entropy (nats) and targets over all replicas; collective, no update."""
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        moved = batch.to(device)
        sums[0] += model(moved).loss_sum
        sums[1] += (moved.targets != IGNORE).sum()
    with waiting():
        dist.all_reduce(sums, group=grid.replicas.group)
        loss, count = sums.tolist()
    return loss, int(count)
