"""All-to-all: from every rank an equal part to every other."""

from functools import partial

import torch.distributed as dist

from .base import BoundOp, GroupRank, Operator
from .shapes import every_other, exchange


def build(member: GroupRank, count: int) -> BoundOp:
    """n parts of `count` elements out, as many in."""
    sent, got = (member.empty(count * member.n) for _ in range(2))
    call = partial(dist.all_to_all_single, got, sent, group=member.group)
    expected = [(x, j, member.index * count) for j, x in enumerate(got.split(count))]
    return BoundOp(call, [sent, got], [(sent, member.index)], expected)


OPERATOR = Operator(build, every_other, exchange, parted=True, hops="ring", symmetric=True)
