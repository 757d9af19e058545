"""All-gather: everyone's part, everywhere."""

from functools import partial

import torch.distributed as dist

from .base import BoundOp, GroupRank, Operator
from .shapes import BOTH_FORMS, every_other, parts

# Older torch has the same call under another name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def build(member: GroupRank, count: int) -> BoundOp:
    """One part of `count` elements in, n out."""
    got = member.empty(count * member.n)
    pieces = got.split(count)
    sent = pieces[member.index] if member.in_place else member.empty(count)
    call = partial(_all_gather, got, sent, group=member.group)
    expected = [(x, j, 0) for j, x in enumerate(pieces)]
    return BoundOp(call, [got, sent], [(sent, member.index)], expected)


OPERATOR = Operator(
    build, every_other, parts, parted=True, forms=BOTH_FORMS, hops="ring", symmetric=True
)
