"""Broadcast from the first rank."""

from functools import partial

import torch.distributed as dist

from .base import BoundOp, GroupRank, Operator
from .shapes import IN_PLACE, one, whole


def build(member: GroupRank, count: int) -> BoundOp:
    """`count` elements of the first rank, to all."""
    x = member.empty(count)
    call = partial(dist.broadcast, x, member.ranks[0], group=member.group)
    return BoundOp(call, [x], [(x, 0)] if member.index == 0 else [], [(x, 0, 0)])


OPERATOR = Operator(build, one, whole, forms=IN_PLACE)
