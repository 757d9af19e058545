"""Where the tiles of ragged groups lie, found on the device."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class TilePlan:
    """Row tiles of the groups, without the host knowing how many there are.

    `tiles` [bound, 4] int32: (expert, first row, rows, unused) of each tile, in row order; `count`
    [1] int32, how many are real; `groups` [E, 4] int32: the same of each expert's whole run, most
    rows first (ties by id).
    """

    tiles: torch.Tensor
    count: torch.Tensor
    groups: torch.Tensor


@triton.jit
def plan_kernel(offsets, tiles, count, groups, E, BLOCK_M: tl.constexpr, EXPERTS: tl.constexpr):
    """One program per expert writes its tiles' records and its own."""
    expert = tl.program_id(0)
    ids = tl.arange(0, EXPERTS)
    ends = tl.load(offsets + ids, mask=ids < E, other=0)
    starts = tl.load(offsets + ids - 1, mask=(ids > 0) & (ids < E), other=0)
    sizes = tl.where(ids < E, ends - starts, -1)
    heights = tl.where(ids < E, tl.cdiv(sizes, BLOCK_M), 0)
    start = tl.sum(tl.where(ids == expert, starts, 0))
    size = tl.sum(tl.where(ids == expert, sizes, 0))
    # Its rank by counting, which needs no sort and no other program: ties go by id, so that two
    # experts never take one place.
    before = (sizes > size) | ((sizes == size) & (ids < expert))
    group = groups + tl.sum(before.to(tl.int32)) * 4
    tl.store(group, expert)
    tl.store(group + 1, start)
    tl.store(group + 2, size)
    first = tl.sum(tl.where(ids < expert, heights, 0))
    if expert == E - 1:
        tl.store(count, tl.sum(heights))
    height = tl.cdiv(size, BLOCK_M)
    for below in range(0, height, 64):
        block = below + tl.arange(0, 64)
        record = tiles + (first + block) * 4
        real = block < height
        tl.store(record, tl.full((64,), expert, tl.int32), mask=real)
        tl.store(record + 1, start + block * BLOCK_M, mask=real)
        tl.store(record + 2, tl.minimum(size - block * BLOCK_M, BLOCK_M), mask=real)


def plan(offsets: torch.Tensor, rows: int, block_m: int) -> TilePlan:
    """Plan tiles of `block_m` rows for groups ending at `offsets` [E] int32, the last at `rows`."""
    experts = offsets.numel()
    bound = min(rows, rows // block_m + experts)
    tiles = torch.empty(max(bound, 1), 4, dtype=torch.int32, device=offsets.device)
    count = torch.empty(1, dtype=torch.int32, device=offsets.device)
    groups = torch.empty(experts, 4, dtype=torch.int32, device=offsets.device)
    plan_kernel[(experts,)](
        offsets, tiles, count, groups, experts,
        BLOCK_M=block_m, EXPERTS=triton.next_power_of_2(experts), num_warps=1,
    )  # fmt: skip
    return TilePlan(tiles, count, groups)
