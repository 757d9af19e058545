"""Gather to the first rank."""

from functools import partial

import torch.distributed as dist

from .base import BoundOp, GroupRank, Operator
from .shapes import BOTH_FORMS, every_other, parts


def build(member: GroupRank, count: int) -> BoundOp:
    """A part of `count` elements of every rank, to the first."""
    if member.index:
        sent = member.empty(count)
        call = partial(dist.gather, sent, None, member.ranks[0], group=member.group)
        return BoundOp(call, [sent], [(sent, member.index)])
    got = member.empty(count * member.n)
    pieces = list(got.split(count))
    sent = pieces[0] if member.in_place else member.empty(count)
    call = partial(dist.gather, sent, pieces, member.ranks[0], group=member.group)
    return BoundOp(call, [got, sent], [(sent, 0)], [(x, j, 0) for j, x in enumerate(pieces)])


OPERATOR = Operator(build, every_other, parts, parted=True, forms=BOTH_FORMS)
