"""All-to-all-v: from every rank to every other as much as a load says."""

from functools import partial

import torch.distributed as dist

from .base import BoundOp, GroupRank, Operator
from .shapes import every_other, exchange


def build(member: GroupRank, count: int) -> BoundOp:
    """The elements that `member.counts` has for this rank, out and in."""
    assert member.counts is not None
    out, into = member.counts[member.index].tolist(), member.counts[:, member.index].tolist()
    sent, got = member.empty(sum(out)), member.empty(sum(into))
    # A sender's values for us follow those that it sends to the ranks before us.
    starts = member.counts[:, : member.index].sum(axis=1).tolist()
    call = partial(dist.all_to_all_single, got, sent, into, out, group=member.group)
    expected = list(zip(got.split(into), range(member.n), starts, strict=True))
    return BoundOp(call, [sent, got], [(sent, member.index)], expected)


OPERATOR = Operator(build, every_other, exchange, parted=True, hops="ring", uneven=True)
