"""Scatter from the first rank."""

from functools import partial

import torch.distributed as dist

from .base import BoundOp, GroupRank, Operator
from .shapes import BOTH_FORMS, every_other, parts


def build(member: GroupRank, count: int) -> BoundOp:
    """To every rank its part of `count` elements of the first."""
    if member.index:
        got = member.empty(count)
        call = partial(dist.scatter, got, None, member.ranks[0], group=member.group)
        return BoundOp(call, [got], [], [(got, 0, member.index * count)])
    sent = member.empty(count * member.n)
    pieces = list(sent.split(count))
    got = pieces[0] if member.in_place else member.empty(count)
    call = partial(dist.scatter, got, pieces, member.ranks[0], group=member.group)
    return BoundOp(call, [sent, got], [(sent, 0)], [(got, 0, 0)])


OPERATOR = Operator(build, every_other, parts, parted=True, forms=BOTH_FORMS)
