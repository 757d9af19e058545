"""Which elements of which logical tensor each rank of a layout writes, and which it reads."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...config import ModelConfig, OptimizerConfig
from ...engines import ENGINES
from ...engines.kind import Run
from ...grid import Place
from ...optim.rules import STATE, rule
from ...state.source import Slab, TensorInfo
from .check import check_layout, check_tensors
from .layout import StateLayout
from .parameters import (
    LocalParameter,
    Skeleton,
    dense_parameters,
    expert_parameters,
    stages_of,
)

Tensors = Mapping[str, TensorInfo]


def holdings(
    tensors: Tensors, model: ModelConfig, target: StateLayout, optimizer: OptimizerConfig
) -> list[list[Slab]]:
    """For each rank the slabs that it writes: every element of every tensor once over all ranks.

    Of copies the first rank speaks. Raises UserError where the layout does not fit the model, or
    `tensors` are not the model's.
    """
    layout = Layout(tensors, model, target, optimizer)
    ranks: list[list[Slab]] = [[] for _ in range(target.world_size)]
    for team in layout.teams():
        speakers = team.ranks if target.zero else team.ranks[:1]
        for rank, runs in zip(speakers, layout.share(team), strict=False):
            writing = [run for run in runs if team.held[run.index].writes]
            ranks[rank] += layout.slabs(team, writing)
    for stage in range(target.pp):
        ranks[target.rank(Place(stage, 0, 0))] += layout.buffers(stage)
    for saved_by, slab in layout.random_state():
        ranks[saved_by % target.world_size].append(slab)
    return ranks


def needs(
    tensors: Tensors, model: ModelConfig, target: StateLayout, optimizer: OptimizerConfig, rank: int
) -> list[Slab]:
    """The slabs that `rank` reads to go on from a checkpoint of any layout: the master weights
    and optimizer state that it keeps, copies included, its buffers and its generators' state.

    Raises UserError as `holdings` does.
    """
    layout = Layout(tensors, model, target, optimizer)
    place = target.place(rank)
    found: list[Slab] = []
    for team in layout.teams_at(place):
        found += layout.slabs(team, layout.share(team)[team.ranks.index(rank)])
    found += layout.buffers(place.stage)
    return found + [slab for saved_by, slab in layout.random_state() if saved_by == rank]


def share(
    held: list[LocalParameter], members: int, target: StateLayout, optimizer: OptimizerConfig
) -> list[list[Run]]:
    """The runs whose master weights and optimizer state each of `members` ranks keeps, by rank.

    `held` are the dense parameters that these ranks hold, or their experts, in the order of the
    model. Without ZeRO every rank keeps all.
    """
    here = [p.local for p in held]
    if target.zero == 0 or members == 1:
        return [[Run(i, 0, p.numel) for i, p in enumerate(here)]] * members
    shares: list[list[Run]] = [[] for _ in range(members)]
    owned = ENGINES[target.engine].share(
        here, members, target.zero, target.bucket_mb << 20, optimizer
    )
    for owner, run in owned:
        shares[owner].append(run)
    return shares


@dataclass(frozen=True)
class HoldingTeam:
    """Ranks that hold the same parameters before ZeRO shares them."""

    held: list[LocalParameter]
    ranks: list[int]


class Layout:
    """A model and its tensors on the ranks of a layout."""

    def __init__(
        self, tensors: Tensors, model: ModelConfig, target: StateLayout, optimizer: OptimizerConfig
    ) -> None:
        check_layout(model, target, optimizer)
        self.tensors, self.target, self.optimizer = tensors, target, optimizer
        self.model = Skeleton(model)
        check_tensors(tensors, self.model, optimizer)

    def teams(self) -> Iterator[HoldingTeam]:
        """All of them."""
        for stage in range(self.target.pp):
            for tensor in range(self.target.tp):
                yield self._dense(stage, tensor)
                for ep_rank in range(self.target.ep):
                    yield self._experts(stage, tensor, ep_rank)

    def teams_at(self, place: Place) -> list[HoldingTeam]:
        """Those of one rank."""
        ep_rank = place.replica % self.target.ep
        return [
            self._dense(place.stage, place.tensor),
            self._experts(place.stage, place.tensor, ep_rank),
        ]

    def _dense(self, stage: int, tensor: int) -> HoldingTeam:
        held = dense_parameters(self.model, self.target, stage, tensor)
        return HoldingTeam(held, self._ranks(stage, tensor, range(self.target.replicas)))

    def _experts(self, stage: int, tensor: int, ep_rank: int) -> HoldingTeam:
        held = expert_parameters(self.model, self.target, stage, tensor, ep_rank)
        copies = range(ep_rank, self.target.replicas, self.target.ep)
        return HoldingTeam(held, self._ranks(stage, tensor, copies))

    def _ranks(self, stage: int, tensor: int, replicas: range) -> list[int]:
        return [self.target.rank(Place(stage, tensor, r)) for r in replicas]

    def share(self, team: HoldingTeam) -> list[list[Run]]:
        """The runs that each rank of the team keeps."""
        return share(team.held, len(team.ranks), self.target, self.optimizer)

    def slabs(self, team: HoldingTeam, runs: Iterable[Run]) -> Iterator[Slab]:
        """Each run's master weights, then its optimizer state where `tensors` has it."""
        for run in runs:
            p = team.held[run.index]
            update = rule(p.local.spec, self.optimizer)
            elements = list(p.elements(run.start, run.numel))
            for prefix in ("model", *(f"{update}/{key}" for key in STATE[update])):
                for e in elements:
                    name = f"{prefix}/{e.name}"
                    if name in self.tensors:
                        yield Slab(name, e.offset, e.run, e.rows, e.stride)

    def buffers(self, stage: int) -> Iterator[Slab]:
        """The buffers of a pipeline stage, which all its ranks hold."""
        for name, spec in self.model.buffers:
            if stage in stages_of(name, self.model.config, self.target):
                yield Slab(f"model/{name}", 0, spec.numel)

    def random_state(self) -> Iterator[tuple[int, Slab]]:
        """The generators' states, each with the rank that saved it."""
        for name, info in self.tensors.items():
            if name.startswith("rng/"):
                yield int(name.split("/")[1]), Slab(name, 0, math.prod(info.shape))
