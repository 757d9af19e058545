"""Which ranks measure together: communicators, and which of them run at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .. import UserError
from .schema import Host
from .suspects import pair_rounds

KINDS = ("world", "node", "rail", "counts", "pairs")
_RANKS = re.compile(r"\d+(,\d+)*(;\d+(,\d+)*)*")
EVERY_COUNT = 16
"""Up to so many ranks `counts` takes each number, then powers of two."""

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """`groups` are disjoint communicators that run at once."""

    name: str
    groups: tuple[Ranks, ...]

    @property
    def at_once(self) -> int:
        """How many communicators there are."""
        return len(self.groups)

    def of(self, rank: int) -> Ranks | None:
        """The communicator of `rank`; None where it looks on."""
        return next((ranks for ranks in self.groups if rank in ranks), None)


def parse_groups(text: str) -> tuple[Ranks, ...]:
    """The groups in `0,1;2,3`; ValueError says what would fit."""
    if not _RANKS.fullmatch(text):
        raise ValueError(f"{text!r}: give one of {', '.join(KINDS)}, or ranks such as 0,1;2,3")
    # torch.distributed orders the ranks of a group.
    groups = tuple(tuple(sorted(map(int, part.split(",")))) for part in text.split(";"))
    ranks = [rank for group in groups for rank in group]
    if len(ranks) != len(set(ranks)):
        raise ValueError(f"{text!r}: a rank stands twice; groups that run at once are disjoint")
    return groups


def settings(kind: str, hosts: Sequence[Host], at_once: bool | str) -> list[Setting]:
    """What one entry of `groups` stands for on these hosts, in the order of measurement.

    Empty where the hosts have no such group. UserError for ranks that do not exist.
    """
    world = sorted(rank for host in hosts for rank in host.ranks)
    if kind == "world":
        return [Setting(kind, (tuple(world),))]
    if kind == "pairs":
        return _pairs(world, at_once)
    if kind == "counts":
        ranks = hosts[0].ranks
        return [Setting(f"first {n}", (tuple(ranks[:n]),)) for n in _counts(len(ranks))]
    return _together(kind, _several(kind, hosts, world), at_once)


def _several(kind: str, hosts: Sequence[Host], world: list[int]) -> tuple[Ranks, ...]:
    if kind == "node":
        found = [tuple(host.ranks) for host in hosts]
    elif kind == "rail":
        rails = range(max(len(host.ranks) for host in hosts))
        found = [tuple(h.ranks[k] for h in hosts if k < len(h.ranks)) for k in rails]
    else:
        groups = parse_groups(kind)
        missing = sorted({rank for group in groups for rank in group} - set(world))
        if missing:
            raise UserError(
                f"groups: {kind!r} names rank {missing[0]}, but the ranks are 0 to {world[-1]}; "
                "name those, or start more"
            )
        return groups
    return tuple(group for group in found if len(group) > 1)


def _together(name: str, groups: tuple[Ranks, ...], at_once: bool | str) -> list[Setting]:
    """The first group alone and all together; the two are the same where there is one only."""
    found = []
    if at_once is not True or len(groups) == 1:
        found.append(Setting(name, groups[:1]))
    if at_once is not False and len(groups) > 1:
        found.append(Setting(name, groups))
    return found if groups else []


def _pairs(world: list[int], at_once: bool | str) -> list[Setting]:
    rounds = [tuple((low, high) for low, high in pairs) for pairs in pair_rounds(world)]
    if at_once is False:
        rounds = [(pair,) for pairs in rounds for pair in pairs]
    return [Setting("pairs", pairs) for pairs in rounds if pairs]


def _counts(ranks: int) -> list[int]:
    small = range(2, min(ranks, EVERY_COUNT) + 1)
    large = [2**i for i in range(5, 32) if 2**i <= ranks]
    return sorted({*small, *large, ranks} - {1})
