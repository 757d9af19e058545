"""Which ranks work together: the process groups of a layout.

Data-parallel ranks are consecutive. Expert parallelism splits them: ranks [k * ep, (k + 1) * ep)
form one expert-parallel group that together holds every expert once, and the ranks with the same
place in their expert-parallel group hold copies of the same experts (expert data parallel, edp).
"""

from dataclasses import dataclass

import torch.distributed as dist

from .. import UserError
from .config import LayoutConfig


@dataclass(frozen=True)
class Team:
    """One process group with this rank's place in it."""

    group: dist.ProcessGroup
    rank: int
    size: int


class Groups:
    """The teams of this rank: `dp` (all data-parallel ranks), `ep`, `edp`.

    Collective over the initialised default group; raises UserError where its size is not the
    layout's.
    """

    def __init__(self, layout: LayoutConfig) -> None:
        world, rank = dist.get_world_size(), dist.get_rank()
        if world != layout.world_size:
            raise UserError(
                f"layout: dp x tp x pp x cp is {layout.world_size}, but {world} processes were "
                f"started: start {layout.world_size}, or set layout.dp={world}"
            )
        self.layout = layout
        whole = dist.group.WORLD
        assert whole is not None
        self.dp = Team(whole, rank, world)
        self.ep = _split(expert_parallel_ranks(layout), rank)
        self.edp = _split(expert_data_parallel_ranks(layout), rank)


def expert_parallel_ranks(layout: LayoutConfig) -> list[list[int]]:
    """Ranks of every expert-parallel group."""
    return [list(range(s, s + layout.ep)) for s in range(0, layout.dp, layout.ep)]


def expert_data_parallel_ranks(layout: LayoutConfig) -> list[list[int]]:
    """Ranks of every group that holds copies of the same experts."""
    return [list(range(r, layout.dp, layout.ep)) for r in range(layout.ep)]


def _split(partition: list[list[int]], rank: int) -> Team:
    # new_group is collective: every rank makes every group, in one order.
    mine = None
    for ranks in partition:
        group = dist.new_group(ranks)
        if rank in ranks:
            mine = Team(group, ranks.index(rank), len(ranks))
    assert mine is not None
    return mine
