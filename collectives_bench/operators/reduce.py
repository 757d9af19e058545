"""Reduce to the first rank."""

from functools import partial

import torch.distributed as dist

from ..codes import SUM
from .base import BoundOp, GroupRank, Operator
from .shapes import IN_PLACE, one, whole


def build(member: GroupRank, count: int) -> BoundOp:
    """`count` elements summed on the first rank; what the others then hold is not defined."""
    x = member.empty(count)
    call = partial(dist.reduce, x, member.ranks[0], group=member.group)
    expected = [(x, SUM, 0)] if member.index == 0 else []
    return BoundOp(call, [x], [(x, member.index)], expected)


OPERATOR = Operator(build, one, whole, forms=IN_PLACE)
