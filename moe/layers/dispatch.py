"""Sending tokens to the ranks that hold their experts, and bringing the results back.

With one rank there is no exchange, and nothing waits for the host.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from ...kernels.grouped_mlp import sort_by_expert
from ...kernels.permute import combine_rows, gather_rows
from ..grid import Team
from ..stages import waiting


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        sent: list[int],
        received: list[int],
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group  # type: ignore[attr-defined]
        return _exchange(x, sent, received, group)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        c = ctx
        return (
            _exchange(grad, c.received, c.sent, c.group),  # type: ignore[attr-defined]
            None,
            None,
            None,
        )


def _exchange(
    x: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> torch.Tensor:
    out = x.new_empty(sum(received), *x.shape[1:])
    with waiting():
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out


@dataclass(frozen=True)
class Exchange:
    """The rows `sent` to and `received` from each rank of `group`; `order` [R] sorts the R received
    ones by local expert, `inverse` undoes it."""

    sent: list[int]
    received: list[int]
    order: torch.Tensor
    inverse: torch.Tensor
    group: dist.ProcessGroup


@dataclass(frozen=True)
class Route:
    """The path of N = T * k token copies through one MoE layer.

    `order` [N] sorts the copies by expert (stable), `inverse` undoes it. `exchange` is None with
    one rank. `offsets` [E_local] int32 ends each local expert's rows.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    offsets: torch.Tensor
    exchange: Exchange | None


def plan(experts: torch.Tensor, counts: torch.Tensor, ep: Team) -> Route:
    """Plan the dispatch of `experts` [T, k] with `counts` [E] tokens for each expert."""
    order, inverse, offsets = sort_by_expert(experts, counts.numel())
    if ep.size == 1:
        return Route(order, inverse, offsets, None)
    theirs = torch.empty_like(counts)
    with waiting():
        dist.all_to_all_single(theirs, counts, group=ep.group)
    outgoing, incoming = counts.view(ep.size, -1), theirs.view(ep.size, -1)
    # The one wait for the host: split sizes must be known to call the collective.
    with waiting():
        sent, received = torch.stack([outgoing.sum(1), incoming.sum(1)]).tolist()
    local = torch.arange(incoming.shape[1], device=counts.device).repeat(ep.size)
    arrived = local.repeat_interleave(theirs, output_size=sum(received))
    local_order, local_inverse, offsets = sort_by_expert(arrived, incoming.shape[1])
    exchange = Exchange(sent, received, local_order, local_inverse, ep.group)
    return Route(order, inverse, offsets, exchange)


def dispatch(x: torch.Tensor, p: Route, e: Exchange, top_k: int) -> torch.Tensor:
    """Rows of `x` [T, D] copied `top_k` times, sent, and sorted by local expert."""
    rows = gather_rows(x, p.order, p.inverse, top_k)
    rows = _AllToAll.apply(rows, e.sent, e.received, e.group)
    return gather_rows(rows, e.order, e.inverse)


def combine(rows: torch.Tensor, p: Route, e: Exchange, weights: torch.Tensor) -> torch.Tensor:
    """Bring expert outputs back to their tokens and add them by `weights` [T, k]: [T, D]."""
    rows = gather_rows(rows, e.inverse, e.order)
    rows = _AllToAll.apply(rows, e.received, e.sent, e.group)
    return combine_rows(rows, p.order, p.inverse, weights)
