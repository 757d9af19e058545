"""Flat gradient buckets: one collective and one optimizer shard for many parameters."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ...grid import Team
from ...optim.rules import matrix_shape
from ...stages import waiting
from ...state.names import fill, logical_tensors, to_shards
from ...state.shard import Shard
from ...state.source import Source

# torch 2.13 renamed both and warns of the old names; 2.11 has only those.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + numel) of a flattened parameter, at `position` of the bucket."""

    name: str
    parameter: nn.Parameter
    start: int
    numel: int
    position: int


def split_elements(named: list[tuple[str, nn.Parameter]], shards: int) -> tuple[list[Piece], int]:
    """Cut the parameters, laid end to end, into `shards` equal runs of elements.

    Returns the pieces and the elements of a shard (the last is padded).
    """
    total = sum(p.numel() for _, p in named)
    size = -(-total // shards)
    pieces, position = [], 0
    for name, p in named:
        start = 0
        while start < p.numel():
            numel = min(p.numel() - start, size - position % size)
            pieces.append(Piece(name, p, start, numel, position))
            start, position = start + numel, position + numel
    return pieces, size


def split_matrices(named: list[tuple[str, nn.Parameter]], shards: int) -> tuple[list[Piece], int]:
    """Deal whole matrices to `shards` in order, balanced to within a matrix (Muon needs them
    whole); a shard is padded to the largest."""
    total = sum(p.numel() for _, p in named)
    runs: list[tuple[int, str, nn.Parameter, int, int]] = []
    loads = [0] * shards
    seen = 0
    for name, p in named:
        rows, columns = matrix_shape(p)
        size = rows * columns
        for start in range(0, p.numel(), size):
            owner = (2 * seen + size) * shards // (2 * total)
            runs.append((owner, name, p, start, size))
            loads[owner], seen = loads[owner] + size, seen + size
    return _place(runs, max(loads)), max(loads)


def _place(runs: list[tuple[int, str, nn.Parameter, int, int]], shard: int) -> list[Piece]:
    pieces: list[Piece] = []
    position, current = 0, 0
    for owner, name, p, start, size in runs:
        last = pieces[-1] if pieces and owner == current else None
        if owner != current:
            position, current = owner * shard, owner
        if last and last.name == name and last.position + last.numel == position:
            pieces[-1] = Piece(name, p, last.start, last.numel + size, last.position)
        else:
            pieces.append(Piece(name, p, start, size, position))
        position += size
    return pieces


class Bucket:
    """Parameters reduced together over one team and updated by one rule.

    With `sharded` (ZeRO-1) each rank of the team keeps the fp32 master weights, and through them
    the optimizer state, of its own shard; without it every rank keeps them all.
    """

    def __init__(
        self, named: list[tuple[str, nn.Parameter]], team: Team, rule: str, sharded: bool
    ) -> None:
        self.team, self.rule = team, rule
        self.sharded = sharded and team.size > 1
        self.shards = team.size if self.sharded else 1
        split = split_matrices if rule == "muon" else split_elements
        self.pieces, self.size = split(named, self.shards)
        self.parameters = [p for _, p in named]
        device = self.parameters[0].device
        self.gradient = torch.zeros(self.shards * self.size, device=device)
        self.shard_gradient = (
            self.gradient if not self.sharded else torch.zeros_like(self.gradient[: self.size])
        )
        self.master = torch.zeros(self.size, device=device)
        self._by_parameter: dict[nn.Parameter, list[Piece]] = {}
        for piece in self.pieces:
            self._by_parameter.setdefault(piece.parameter, []).append(piece)
        self._low = (team.rank if self.sharded else 0) * self.size
        self._work: dist.Work | None = None
        self._arrived = 0
        self._load_master()

    def owned(self) -> list[tuple[Piece, int]]:
        """Pieces in this rank's shard, each with its position there."""
        inside = range(self._low, self._low + self.size)
        return [(p, p.position - self._low) for p in self.pieces if p.position in inside]

    @torch.no_grad()
    def _load_master(self) -> None:
        for piece, at in self.owned():
            flat = piece.parameter.view(-1)[piece.start : piece.start + piece.numel]
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
            flat = piece.parameter.view(-1)[piece.start : piece.start + piece.numel]
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
            logicals = logical_tensors(piece.name, piece.parameter)
            shards += to_shards(prefix, logicals, piece.start, values[at : at + piece.numel])
        return shards

    @torch.no_grad()
    def load(self, reader: Source, prefix: str, values: torch.Tensor) -> None:
        """Read the elements that `export` names into `values`."""
        for piece, at in self.owned():
            logicals = logical_tensors(piece.name, piece.parameter)
            fill(reader, prefix, logicals, piece.start, values[at : at + piece.numel])


def fill_buckets(
    named: Iterable[tuple[str, nn.Parameter]], limit_bytes: int
) -> list[list[tuple[str, nn.Parameter]]]:
    """Group parameters, in order, into runs of about `limit_bytes` of fp32 gradients."""
    buckets: list[list[tuple[str, nn.Parameter]]] = []
    room = 0
    for name, p in named:
        if room <= 0:
            buckets.append([])
            room = limit_bytes
        buckets[-1].append((name, p))
        room -= 4 * p.numel()
    return buckets
