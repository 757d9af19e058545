"""A barrier, which moves nothing."""

from functools import partial

import torch.distributed as dist

from .base import BoundOp, GroupRank, Operator
from .shapes import one


def build(member: GroupRank, count: int) -> BoundOp:
    """All ranks meet."""
    return BoundOp(partial(dist.barrier, group=member.group))


OPERATOR = Operator(build, one, lambda n, count, in_place: 0, sized=False)
