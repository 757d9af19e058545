"""Send and receive around a ring; between two ranks, both ways at once."""

import torch.distributed as dist

from .base import BoundOp, GroupRank, Operator
from .shapes import one


def build(member: GroupRank, count: int) -> BoundOp:
    """`count` elements to the next rank of the ring, as many from the one before."""
    sent, got = member.empty(count), member.empty(count)
    before = (member.index - 1) % member.n
    pair = [
        dist.P2POp(dist.isend, sent, member.ranks[(member.index + 1) % member.n], member.group),
        dist.P2POp(dist.irecv, got, member.ranks[before], member.group),
    ]

    def call() -> None:
        for work in dist.batch_isend_irecv(pair):
            work.wait()

    return BoundOp(call, [sent, got], [(sent, member.index)], [(got, before, 0)])


OPERATOR = Operator(build, one, lambda n, count, in_place: 2 * count, least=2)
