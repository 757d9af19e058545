"""Sums over the global batch that every engine needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..batch import IGNORE, Batch
from ..grid import Groups
from ..model import Model, ModelOutput
from ..stages import CLOCK, waiting
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


def count_totals(batches: Sequence[Batch], groups: Groups, device: torch.device) -> Totals:
    """Count the global batch; collective over the data-parallel group."""
    targets = sum(int((b.targets != IGNORE).sum()) for b in batches)
    sequences = sum(b.tokens.shape[0] for b in batches)
    counts = torch.tensor([targets, sequences], device=device)
    with waiting():
        dist.all_reduce(counts, group=groups.dp.group)
        return Totals(*(max(n, 1) for n in counts.tolist()))


class Tally:
    """Adds up the outputs of a step's micro-batches without waiting for the device."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._sums: torch.Tensor | None = None
        self._shape = torch.Size()

    def add(self, out: ModelOutput) -> None:
        """Take one micro-batch's sums."""
        losses = torch.stack([out.loss_sum.detach(), out.aux_sum.detach()]).double()
        sums = torch.cat([losses, out.counts.flatten().double()])
        self._shape = out.counts.shape
        self._sums = sums if self._sums is None else self._sums + sums

    def reduce(
        self, groups: Groups, leave: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(loss sum, aux sum, counts [layers, E]) over all ranks, on the device, and how many want
        to `leave`; collective."""
        assert self._sums is not None
        # Made by a kernel: a copy from the host would wait for the device.
        wish = torch.full_like(self._sums[:1], float(leave))
        self._sums = torch.cat([wish, self._sums])
        with waiting():
            dist.all_reduce(self._sums, group=groups.dp.group)
        return self._sums[1], self._sums[2], self._counts()

    def _counts(self) -> torch.Tensor:
        assert self._sums is not None
        return self._sums[3:].view(self._shape).long()

    def loss(self) -> float:
        """The mean loss of the global batch, after `reduce`; waits for the device."""
        assert self._sums is not None
        with waiting():
            return self._sums[1].item() / self._totals.targets

    def finish(
        self, model: Model, norm: torch.Tensor | float, lr: float, applied: bool
    ) -> StepMetrics:
        """End a step after `reduce`: move the routers' biases if it was `applied`, report."""
        assert self._sums is not None
        counts = self._counts()
        if applied:
            with CLOCK.stage("update"):
                model.update_router_bias(counts)
        with waiting():
            wishes, loss, aux = self._sums[:3].tolist()
            load, norm = counts.cpu(), float(norm)
        return StepMetrics(
            loss=loss / self._totals.targets,
            aux_loss=aux / self._totals.sequences,
            grad_norm=norm,
            lr=lr,
            tokens=self._totals.targets,
            expert_load=load,
            skipped=not applied,
            leave=wishes > 0,
        )


@torch.no_grad()
def evaluate(
    model: Model, batches: Sequence[Batch], groups: Groups, device: torch.device
) -> tuple[float, int]:
    """Summed cross-entropy (nats) and targets over all ranks; collective, no update."""
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        moved = batch.to(device)
        sums[0] += model(moved).loss_sum
        sums[1] += (moved.targets != IGNORE).sum()
    with waiting():
        dist.all_reduce(sums, group=groups.dp.group)
        loss, count = sums.tolist()
    return loss, int(count)
