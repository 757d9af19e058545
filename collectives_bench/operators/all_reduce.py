"""All-reduce: everyone's sum, everywhere."""

from functools import partial

import torch.distributed as dist

from ..codes import SUM
from .base import BoundOp, GroupRank, Operator
from .shapes import IN_PLACE, whole


def build(member: GroupRank, count: int) -> BoundOp:
    """`count` elements summed in place."""
    x = member.empty(count)
    call = partial(dist.all_reduce, x, group=member.group)
    return BoundOp(call, [x], [(x, member.index)], [(x, SUM, 0)])


OPERATOR = Operator(
    build, lambda n: 2 * (n - 1) / n, whole, forms=IN_PLACE, hops="tree", symmetric=True
)
