"""The one grid of ranks: who stands where in a layout, and which ranks work together.

Ranks count as in Megatron: tensor parallel innermost, then context, data, and pipeline outermost.
The dp x cp ranks with the same dense weights are replicas of each other. Of them each `ep`
consecutive ones hold every expert once, and those with the same place in their expert-parallel
group hold copies of the same experts (expert data parallel, edp). Experts are cut over the same
tensor-parallel ranks as all else (etp = tp).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.distributed as dist
from pydantic import model_validator

from .. import UserError
from .section import Positive, Section


@dataclass(frozen=True)
class Place:
    """One rank's coordinates: pipeline `stage`, `tensor`-parallel rank, and which of the dp x cp
    ranks with the same dense weights it is (`replica`)."""

    stage: int
    tensor: int
    replica: int


class Shape(Section):
    """The degrees of a grid. World size is dp * tp * pp * cp; ep divides dp * cp."""

    dp: Positive = 1
    ep: Positive = 1
    tp: Positive = 1
    pp: Positive = 1
    cp: Positive = 1

    @model_validator(mode="after")
    def _check_experts(self) -> "Shape":
        if self.replicas % self.ep:
            whole = f"dp {self.dp}" if self.cp == 1 else f"dp x cp {self.replicas}"
            raise ValueError(
                f"ep is {self.ep}, which does not divide {whole}: expert parallelism splits "
                "these ranks, so set dp to a multiple of ep"
            )
        return self

    @property
    def replicas(self) -> int:
        """Ranks that hold the same dense weights."""
        return self.dp * self.cp

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.replicas * self.tp * self.pp

    def place(self, rank: int) -> Place:
        """Where `rank` stands."""
        outer, tensor = divmod(rank, self.tp)
        stage, replica = divmod(outer, self.replicas)
        return Place(stage, tensor, replica)

    def rank(self, place: Place) -> int:
        """The rank that stands there; the inverse of `place`."""
        return (place.stage * self.replicas + place.replica) * self.tp + place.tensor

    def teams(self, key: Callable[[Place], object]) -> list[list[int]]:
        """The ranks parted by what `key` says of their places, each part in order of rank."""
        parts: dict[object, list[int]] = {}
        for rank in range(self.world_size):
            parts.setdefault(key(self.place(rank)), []).append(rank)
        return list(parts.values())

    def partitions(self) -> Iterator[tuple[str, list[list[int]]]]:
        """(name, its teams) of every way in which the ranks work together."""
        cp, ep = self.cp, self.ep
        yield "world", [list(range(self.world_size))]
        yield "replicas", self.teams(lambda p: (p.stage, p.tensor))
        yield "dp", self.teams(lambda p: (p.stage, p.tensor, p.replica % cp))
        yield "cp", self.teams(lambda p: (p.stage, p.tensor, p.replica // cp))
        yield "tp", self.teams(lambda p: (p.stage, p.replica))
        yield "pp", self.teams(lambda p: (p.tensor, p.replica))
        yield "ep", self.teams(lambda p: (p.stage, p.tensor, p.replica // ep))
        yield "edp", self.teams(lambda p: (p.stage, p.tensor, p.replica % ep))


@dataclass(frozen=True)
class Team:
    """One process group with this rank's place in it."""

    group: dist.ProcessGroup
    rank: int
    size: int


class Grid:
    """This rank's place in a layout, and its team of each kind.

    `world`: all ranks. `replicas`: those with the same dense weights (dp x cp). `dp`, `cp`, `tp`,
    `pp`, `ep`, `edp`: of one parallel degree each; `etp` is `tp`. `writer`: whether this rank, the
    first, writes what all ranks know. Collective over the initialised default group; raises
    UserError where its size is not the layout's.
    """

    world: Team
    replicas: Team
    dp: Team
    cp: Team
    tp: Team
    pp: Team
    ep: Team
    edp: Team

    def __init__(self, shape: Shape) -> None:
        world, rank = dist.get_world_size(), dist.get_rank()
        if world != shape.world_size:
            raise UserError(
                f"layout: dp x tp x pp x cp is {shape.world_size}, but {world} processes were "
                f"started: start {shape.world_size}, or set layout.dp={world}"
            )
        self.place, self.writer = shape.place(rank), rank == 0
        groups: Groups = {}
        for name, teams in shape.partitions():
            # Experts' exchanges have a communicator of their own: on one that is shared they would
            # queue behind the gradients' reductions.
            setattr(self, name, _join(teams, rank, groups, name in ("ep", "edp")))

    @property
    def etp(self) -> Team:
        """Ranks that share the matrices of an expert."""
        return self.tp


Groups = dict[tuple[bool, tuple[int, ...]], dist.ProcessGroup]


def _join(teams: list[list[int]], rank: int, groups: Groups, apart: bool) -> Team:
    """This rank's team. Making a group is collective: every rank makes every group, in one order;
    ranks that work together in several ways have one, and another where they stay `apart`."""
    mine = None
    for ranks in teams:
        key = apart and len(ranks) > 1, tuple(ranks)
        if key not in groups:
            groups[key] = _group(ranks, apart)
        if rank in ranks:
            mine = Team(groups[key], ranks.index(rank), len(ranks))
    assert mine is not None
    return mine


def _group(ranks: list[int], apart: bool) -> dist.ProcessGroup:
    whole = dist.group.WORLD
    assert whole is not None
    return whole if len(ranks) == whole.size() and not apart else dist.new_group(ranks)
