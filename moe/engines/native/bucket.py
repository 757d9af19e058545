"""Flat gradient buckets: one collective and one optimizer shard for many parameters."""

import torch
import torch.distributed as dist
from torch import nn

from ...grid import Team
from ...stages import waiting
from ...state.names import Parameters, fill, to_shards
from ...state.shard import Shard
from ...state.source import Source
from .shares import BucketPiece, split

# torch 2.13 renamed both and warns of the old names; 2.11 has only those.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Bucket:
    """Parameters reduced together over one team and updated by one rule.

    With `sharded` (ZeRO-1) each rank of the team keeps the fp32 master weights, and through them
    the optimizer state, of its own shard; without it every rank keeps them all.
    """

    def __init__(self, held: Parameters, team: Team, rule: str, sharded: bool) -> None:
        self.team, self.rule = team, rule
        self.sharded = sharded and team.size > 1
        self.shards = team.size if self.sharded else 1
        self.pieces, self.size = split([local for local, _ in held], self.shards, rule)
        self.parameters = [p for _, p in held]
        self.decay = held[0][0].spec.decay
        device = self.parameters[0].device
        self.gradient = torch.zeros(self.shards * self.size, device=device)
        self.shard_gradient = (
            self.gradient if not self.sharded else torch.zeros_like(self.gradient[: self.size])
        )
        self.master = torch.zeros(self.size, device=device)
        self._parameter = {local.name: p for local, p in held}
        self._by_parameter: dict[nn.Parameter, list[BucketPiece]] = {}
        for piece in self.pieces:
            self._by_parameter.setdefault(self._parameter[piece.local.name], []).append(piece)
        self._low = (team.rank if self.sharded else 0) * self.size
        self._work: dist.Work | None = None
        self._arrived = 0
        self._load_master()

    def owned(self) -> list[tuple[BucketPiece, int]]:
        """Pieces in this rank's shard, each with its position there."""
        inside = range(self._low, self._low + self.size)
        return [(p, p.position - self._low) for p in self.pieces if p.position in inside]

    def _elements(self, piece: BucketPiece) -> torch.Tensor:
        parameter = self._parameter[piece.local.name]
        return parameter.view(-1)[piece.start : piece.start + piece.numel]

    @torch.no_grad()
    def _load_master(self) -> None:
        for piece, at in self.owned():
            flat = self._elements(piece)
            self.master[at : at + piece.numel] = flat.float()

    @torch.no_grad()
    def accumulate(self, parameter: nn.Parameter) -> None:
        """Add the parameter's fresh gradient in fp32, and free it."""
        assert parameter.grad is not None
        flat = parameter.grad.reshape(-1)
        for piece in self._by_parameter[parameter]:
            part = self.gradient[piece.position : piece.position + piece.numel]
            part += flat[piece.start : piece.start + piece.numel]
        parameter.grad = None

    def arrive(self) -> None:
        """Count one parameter's final gradient; the last one starts the reduction."""
        self._arrived += 1
        if self._arrived == len(self.parameters):
            self.reduce()

    def reduce(self) -> None:
        """Start adding gradients over the team; `wait` ends it. Each rank gets its shard's."""
        self._arrived = len(self.parameters)
        if self.team.size == 1:
            return
        group = self.team.group
        if self.sharded:
            self._work = _reduce_scatter(
                self.shard_gradient, self.gradient, group=group, async_op=True
            )
        else:
            self._work = dist.all_reduce(self.gradient, group=group, async_op=True)

    def wait(self) -> None:
        """Wait for the reduction, starting it where some parameter got no gradient."""
        if self._arrived < len(self.parameters):
            self.reduce()
        self._arrived = 0
        if self._work is not None:
            with waiting():
                self._work.wait()
            self._work = None

    def squared_norm(self) -> torch.Tensor:
        """This rank's part of the squared gradient norm: over all ranks it adds up to the norm
        of every parameter counted once."""
        copies = 1 if self.sharded else self.team.size
        return self.shard_gradient.double().square().sum() / copies

    @torch.no_grad()
    def publish(self) -> None:
        """Give every rank of the team the updated weights in the parameters' dtype."""
        dtype = self.parameters[0].dtype
        shard = self.master.to(dtype)
        whole = shard
        if self.sharded:
            whole = shard.new_empty(self.shards * self.size)
            with waiting():
                _all_gather(whole, shard, group=self.team.group)
        for piece in self.pieces:
            flat = self._elements(piece)
            flat.copy_(whole[piece.position : piece.position + piece.numel])
        self.discard()

    def discard(self) -> None:
        """Forget the accumulated gradient."""
        self.gradient.zero_()

    def export(self, prefix: str, values: torch.Tensor) -> list[Shard]:
        """Name the elements of `values`, laid out as the shard; copies speak once."""
        if not self.sharded and self.team.rank > 0:
            return []
        shards: list[Shard] = []
        for piece, at in self.owned():
            logicals = piece.local.logicals()
            shards += to_shards(prefix, logicals, piece.start, values[at : at + piece.numel])
        return shards

    @torch.no_grad()
    def load(self, reader: Source, prefix: str, values: torch.Tensor) -> None:
        """Read the elements that `export` names into `values`."""
        for piece, at in self.owned():
            logicals = piece.local.logicals()
            fill(reader, prefix, logicals, piece.start, values[at : at + piece.numel])
