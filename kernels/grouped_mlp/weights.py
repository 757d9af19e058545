"""Weight gradients: products over each expert's own, ragged, run of rows."""

import triton
import triton.language as tl

from ..order import locate, program_index
from ..split import pieces
from .tiles import load_block, load_group_rows, load_zeroed


@triton.jit
def weight_gradient_kernel(
    left,
    right,
    out,
    groups,
    E,
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    FLATTEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    XCDS: tl.constexpr,
):
    """out[e] = left[rows of e]^T right[rows of e], `left` [rows, M], `right` [rows, N].

    Experts go as `groups` has them (`TilePlan`), longest first, so that skewed loads end evenly; an
    expert without rows gets zeros. With ACCUMULATE the product is added to `out` (each element by
    one program).
    """
    across = tl.cdiv(N, BLOCK_N)
    down = tl.cdiv(M, BLOCK_M)
    per_expert = down * across
    step = tl.num_programs(0)
    for tile in tl.range(program_index(XCDS), E * per_expert, step, flatten=FLATTEN):
        # All tiles of an expert before the next one's: its rows of both factors then stay in L2.
        group = groups + tile // per_expert * 4
        expert = tl.load(group)
        start = tl.load(group + 1)
        size = tl.load(group + 2)
        row_tile, column_tile = locate(tile % per_expert, down, across, GROUP_M)
        row, column = row_tile * BLOCK_M, column_tile * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if DESCRIPTORS:
            # At least one step, of zeros: a flattened loop needs it to reach an empty expert.
            for k in range(0, tl.maximum(size, 1), BLOCK_K):
                a = load_group_rows(left, start, size, k, row, BLOCK_K, BLOCK_M)
                b = load_group_rows(right, start, size, k, column, BLOCK_K, BLOCK_N)
                acc = tl.dot(a.T, b, acc, input_precision="ieee")
        else:
            # The ragged end apart: a row mask on every step would cost more than one step beside.
            whole = size // BLOCK_K * BLOCK_K
            for k in range(0, whole, BLOCK_K):
                at = (start + k).to(tl.int64)
                a = load_block(left + at * M, M, 0, BLOCK_K, row, M, BLOCK_K, BLOCK_M, EVEN)
                b = load_block(right + at * N, N, 0, BLOCK_K, column, N, BLOCK_K, BLOCK_N, EVEN)
                acc = tl.dot(a.T, b, acc, input_precision="ieee")
            if whole < size:
                at = (start + whole).to(tl.int64)
                a = load_zeroed(left + at * M, M, size - whole, row, M, BLOCK_K, BLOCK_M)
                b = load_zeroed(right + at * N, N, size - whole, column, N, BLOCK_K, BLOCK_N)
                acc = tl.dot(a.T, b, acc, input_precision="ieee")
        WIDTH: tl.constexpr = BLOCK_N // SUBTILES
        parts = pieces(acc, BLOCK_M, WIDTH, SUBTILES)
        for i in tl.static_range(SUBTILES):
            _store(
                out, parts[i], expert, row, column + i * WIDTH, M, N,
                BLOCK_M, WIDTH, DESCRIPTORS, ACCUMULATE,
            )  # fmt: skip


@triton.jit
def _store(
    out,
    value,
    expert,
    row,
    column,
    M,
    N,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    if DESCRIPTORS:
        block = value.to(out.dtype).reshape(1, ROWS, COLUMNS)
        if ACCUMULATE:
            # The copy hardware adds in L2; one program owns the element, so order cannot matter.
            out.atomic_add([expert, row, column], block)
        else:
            out.store([expert, row, column], block)
    else:
        r = row + tl.arange(0, ROWS)
        c = column + tl.arange(0, COLUMNS)
        pointers = out + expert.to(tl.int64) * M * N + (r[:, None] * N + c[None, :])
        inside = (r[:, None] < M) & (c[None, :] < N)
        if ACCUMULATE:
            value += tl.load(pointers, mask=inside, other=0.0)
        tl.store(pointers, value.to(out.dtype.element_ty), mask=inside)
