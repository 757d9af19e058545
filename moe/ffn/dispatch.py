"""Sending tokens to the ranks that hold their experts, and bringing the results back.

One definition serves every expert-parallel size: with one rank the exchange vanishes and nothing
waits for the host.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from ...kernels.grouped_mlp import sort_by_expert
from ...kernels.permute import combine_rows, gather_rows
from ..layout import Team


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
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out


@dataclass(frozen=True)
class Plan:
    """The path of N = T * k token copies through one MoE layer.

    `order` [N] sorts the copies by expert (stable), `inverse` undoes it. With several ranks,
    `sent` and `received` are the rows exchanged with each, and `local_order` [R] sorts the R
    received rows by local expert. `offsets` [E_local] int32 ends each local expert's rows.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    offsets: torch.Tensor
    sent: list[int]
    received: list[int]
    local_order: torch.Tensor | None
    local_inverse: torch.Tensor | None


def plan(experts: torch.Tensor, counts: torch.Tensor, ep: Team) -> Plan:
    """Plan the dispatch of `experts` [T, k] with `counts` [E] tokens for each expert."""
    order, inverse, offsets = sort_by_expert(experts, counts.numel())
    if ep.size == 1:
        return Plan(order, inverse, offsets, [], [], None, None)
    theirs = torch.empty_like(counts)
    dist.all_to_all_single(theirs, counts, group=ep.group)
    outgoing, incoming = counts.view(ep.size, -1), theirs.view(ep.size, -1)
    # The one wait for the host: split sizes must be known to call the collective.
    sent, received = torch.stack([outgoing.sum(1), incoming.sum(1)]).tolist()
    local = torch.arange(incoming.shape[1], device=counts.device).repeat(ep.size)
    arrived = local.repeat_interleave(theirs, output_size=sum(received))
    local_order, local_inverse, offsets = sort_by_expert(arrived, incoming.shape[1])
    return Plan(order, inverse, offsets, sent, received, local_order, local_inverse)


def dispatch(x: torch.Tensor, p: Plan, top_k: int, ep: Team) -> torch.Tensor:
    """Rows of `x` [T, D] copied `top_k` times, sent, and sorted by local expert."""
    rows = gather_rows(x, p.order, p.inverse, top_k)
    if p.local_order is None or p.local_inverse is None:
        return rows
    rows = _AllToAll.apply(rows, p.sent, p.received, ep.group)
    return gather_rows(rows, p.local_order, p.local_inverse)


def combine(rows: torch.Tensor, p: Plan, weights: torch.Tensor, ep: Team) -> torch.Tensor:
    """Bring expert outputs back to their tokens and add them by `weights` [T, k]: [T, D]."""
    if p.local_order is not None and p.local_inverse is not None:
        rows = gather_rows(rows, p.local_inverse, p.local_order)
        rows = _AllToAll.apply(rows, p.received, p.sent, ep.group)
    return combine_rows(rows, p.order, p.inverse, weights)
