"""Sorting token copies by expert on the device: a stable counting sort, without atomics or a wait.

Three launches: how many copies each block of them sends to each expert; for each expert the sum
over the blocks before; then each block sorts its copies and knows where they go.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..spec import Variant
from ..targets import Target

BLOCK = 1024


@triton.jit
def count_kernel(experts, counts, N, E, BLOCK: tl.constexpr, EXPERTS: tl.constexpr):
    """counts [blocks, EXPERTS]: the block's copies for each expert; the rest of the row is junk."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(experts + at, mask=at < N, other=E).to(tl.int32)
    found = tl.histogram(ids, EXPERTS)
    tl.store(counts + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), found)


@triton.jit
def prefix_kernel(counts, before, totals, blocks, EXPERTS: tl.constexpr, CHUNK: tl.constexpr):
    """before [blocks, EXPERTS]: the expert's copies in earlier blocks; totals [EXPERTS]: in all."""
    expert = tl.program_id(0)
    total = 0
    for first in range(0, blocks, CHUNK):
        block = first + tl.arange(0, CHUNK)
        at = block * EXPERTS + expert
        found = tl.load(counts + at, mask=block < blocks, other=0)
        ends = tl.cumsum(found, 0)
        tl.store(before + at, total + ends - found, mask=block < blocks)
        total += tl.sum(found, 0)
    tl.store(totals + expert, total)


@triton.jit
def place_kernel(
    experts,
    counts,
    before,
    totals,
    order,
    inverse,
    offsets,
    N,
    E,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """order [N] and inverse [N] of the stable sort, and offsets [E], each expert's end."""
    block = tl.program_id(0)
    ids = tl.arange(0, EXPERTS)
    sizes = tl.load(totals + ids)
    ends = tl.cumsum(sizes, 0)
    if block == 0:
        tl.store(offsets + ids, ends, mask=ids < E)
    mine = tl.load(counts + block * EXPERTS + ids)
    # From a copy's place in the sorted block to its place among all.
    shift = ends - sizes + tl.load(before + block * EXPERTS + ids) - (tl.cumsum(mine, 0) - mine)
    place = tl.arange(0, BLOCK)
    at = block * BLOCK + place
    keys = tl.load(experts + at, mask=at < N, other=E).to(tl.int32) * BLOCK + place
    keys = tl.sort(keys)
    expert = keys // BLOCK
    source = block * BLOCK + keys % BLOCK
    target = tl.gather(shift, expert, 0) + place
    real = expert < E
    tl.store(order + target, source.to(tl.int64), mask=real)
    tl.store(inverse + source, target.to(tl.int64), mask=real)


@torch.library.custom_op("moelstrom::sort_by_expert", mutates_args=())
def sort(
    experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(order [N] int64, inverse [N] int64, offsets [E] int32) of experts [N] int64."""
    n, device = experts.numel(), experts.device
    width = triton.next_power_of_2(num_experts + 1)
    blocks = max(1, triton.cdiv(n, BLOCK))
    counts = torch.empty(blocks, width, dtype=torch.int32, device=device)
    before, totals = torch.empty_like(counts), counts.new_empty(width)
    order = torch.empty(n, dtype=torch.int64, device=device)
    inverse, offsets = torch.empty_like(order), counts.new_empty(num_experts)
    sizes = {"EXPERTS": width, "num_warps": 4}
    count_kernel[(blocks,)](experts, counts, n, num_experts, BLOCK=BLOCK, **sizes)
    prefix_kernel[(width,)](counts, before, totals, blocks, CHUNK=256, **sizes)
    place_kernel[(blocks,)](
        experts, counts, before, totals, order, inverse, offsets, n, num_experts,
        BLOCK=BLOCK, **sizes,
    )  # fmt: skip
    return order, inverse, offsets


@sort.register_fake
def _sort_fake(
    experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    order = experts.new_empty(experts.shape, dtype=torch.int64)
    return order, torch.empty_like(order), experts.new_empty(num_experts, dtype=torch.int32)


def variants(target: Target) -> Iterator[Variant]:
    """The three launches at 128 experts, for the portability gate."""
    constants = {"BLOCK": BLOCK, "EXPERTS": 256}
    inputs = {"experts": "*i64", "counts": "*i32"}
    sums = {"before": "*i32", "totals": "*i32"}
    results = {"order": "*i64", "inverse": "*i64", "offsets": "*i32"}
    lengths = {"N": "i32", "E": "i32"}
    for name, kernel, signature, settings in (
        ("count", count_kernel, inputs | lengths, constants),
        (
            "prefix",
            prefix_kernel,
            {"counts": "*i32", **sums, "blocks": "i32"},
            {"EXPERTS": 256, "CHUNK": 256},
        ),
        ("place", place_kernel, inputs | sums | results | lengths, constants),
    ):
        pointers = tuple(n for n, kind in signature.items() if kind.startswith("*"))
        yield Variant(
            f"grouped_mlp.sort_{name}",
            kernel,
            signature,
            settings,
            pointers,
            {"num_warps": 4},
            # Indices, four or eight bytes each.
            narrow_loads=64,
        )
