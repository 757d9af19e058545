"""Reduce-scatter: to each rank its part of the sum."""

from functools import partial

import torch.distributed as dist

from ..codes import SUM
from .base import BoundOp, GroupRank, Operator
from .shapes import BOTH_FORMS, every_other, parts

# Older torch has the same call under another name.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def build(member: GroupRank, count: int) -> BoundOp:
    """n parts of `count` elements in, one out."""
    sent = member.empty(count * member.n)
    got = sent.split(count)[member.index] if member.in_place else member.empty(count)
    call = partial(_reduce_scatter, got, sent, group=member.group)
    expected = [(got, SUM, member.index * count)]
    return BoundOp(call, [sent, got], [(sent, member.index)], expected)


OPERATOR = Operator(
    build, every_other, parts, parted=True, forms=BOTH_FORMS, hops="ring", symmetric=True
)
