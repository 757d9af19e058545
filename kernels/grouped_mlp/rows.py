"""Grouped products over row tiles: [N, K] rows sorted by expert times each expert's weights.

All are persistent: a fixed grid walks the row tiles that `plan` wrote, times the column tiles. The
record of a row tile is (expert, first row, rows), so the real number of tiles stays on the device.
With DESCRIPTORS the factors are tensor descriptors, else pointers with the strides given; rows that
a kernel gathers itself come by pointers in any case. The
epilogues with SwiGLU load and store by pointers in any case: nothing waits for such stores, while
copies by descriptor would take turns in one buffer.
"""

import triton
import triton.language as tl

from ..order import locate, program_index
from ..split import halves, pieces
from .tiles import load_block, load_gathered, row_offsets, sigmoid, store_rows


@triton.jit
def gate_up_kernel(
    x,
    weight,
    gate_out,
    up_out,
    act_out,
    order,
    tiles,
    tile_count,
    copies,
    D,
    F,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
    SAVE: tl.constexpr,
    XCDS: tl.constexpr,
):
    """gate, up = x W^T by halves, act = silu(gate) * up; gate and up are kept when SAVE.

    One product of BLOCK_M x 2 BLOCK_N: the weight block holds BLOCK_N gate rows, then the
    BLOCK_N up rows beside them, and the accumulator splits without leaving its registers.

    `order` None: x has the experts' rows; else row i is x[order[i] // copies].
    """
    row_tiles = tl.load(tile_count)
    columns = tl.cdiv(F, BLOCK_N)
    step = tl.num_programs(0)
    for tile in tl.range(program_index(XCDS), row_tiles * columns, step, flatten=FLATTEN):
        row_tile, column_tile = locate(tile, row_tiles, columns, GROUP_M)
        expert = tl.load(tiles + row_tile * 4)
        start = tl.load(tiles + row_tile * 4 + 1)
        rows = tl.load(tiles + row_tile * 4 + 2)
        column = column_tile * BLOCK_N
        acc = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
        if order is not None:
            # Once a tile, before the loop: the addresses stay in registers over all of K.
            at = row_offsets(order, copies, D, start, rows, BLOCK_M)
        for k in range(0, D, BLOCK_K):
            if order is not None:
                a = load_gathered(x, at, k, D, BLOCK_K, EVEN)
            elif DESCRIPTORS:
                a = x.load([start, k])
            else:
                base = x + start.to(tl.int64) * D
                a = load_block(base, D, 0, rows, k, D, BLOCK_M, BLOCK_K, EVEN)
            if DESCRIPTORS:
                # The descriptor sees [2E, F, D], so one copy takes rows of gate and of up, and ends
                # at F in each of the two.
                b = weight.load([2 * expert, column, k]).reshape(2 * BLOCK_N, BLOCK_K)
            else:
                b = _gate_up_block(weight, expert, column, k, D, F, BLOCK_N, BLOCK_K, EVEN)
            # Of fp32 only: TF32 would miss the tolerances. bf16 is multiplied exactly in any case.
            acc = tl.dot(a, b.T, acc, input_precision="ieee")
        gate, up = halves(acc, BLOCK_M, BLOCK_N)
        # Rounded as stored, so that the backward pass recomputes the same activation.
        DTYPE: tl.constexpr = act_out.dtype.element_ty
        gate, up = gate.to(DTYPE), up.to(DTYPE)
        if SAVE:
            store_rows(gate_out, gate, 2 * F, start, rows, column, F, BLOCK_M, BLOCK_N, False)
        g = gate.to(tl.float32)
        act = g * sigmoid(g) * up.to(tl.float32)
        store_rows(act_out, act, F, start, rows, column, F, BLOCK_M, BLOCK_N, False)
        if SAVE:
            store_rows(up_out, up, 2 * F, start, rows, column, F, BLOCK_M, BLOCK_N, False)


@triton.jit
def _gate_up_block(
    weight,
    expert,
    column,
    k,
    D,
    F,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    # Past F the last row repeats: no result of it is stored, and a mask on rows would cost
    # registers in the loop.
    n = tl.arange(0, 2 * BLOCK_N)
    row = tl.minimum(column + n % BLOCK_N, F - 1) + n // BLOCK_N * F
    c = k + tl.arange(0, BLOCK_K)
    pointers = weight + expert.to(tl.int64) * (2 * F) * D + (row[:, None] * D + c[None, :])
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=c[None, :] < D, other=0.0)


@triton.jit
def _weight_block(
    weight,
    expert,
    column,
    k,
    K,
    N,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """[BLOCK_K, BLOCK_N] of an expert's weights, kept as [K, N], or [N, K] when TRANSPOSED."""
    base = weight
    if not DESCRIPTORS:
        base += expert.to(tl.int64) * K * N
    if TRANSPOSED:
        if DESCRIPTORS:
            block = weight.load([expert, column, k]).reshape(BLOCK_N, BLOCK_K)
        else:
            block = load_block(base, K, column, N, k, K, BLOCK_N, BLOCK_K, EVEN)
        block = block.T
    else:
        if DESCRIPTORS:
            block = weight.load([expert, k, column]).reshape(BLOCK_K, BLOCK_N)
        else:
            # Rows past K repeat the last one; the left block's columns are zero there.
            block = load_block(base, N, k, K, column, N, BLOCK_K, BLOCK_N, EVEN)
    return block


@triton.jit
def linear_kernel(
    x,
    weight,
    out,
    tiles,
    tile_count,
    K,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    FLATTEN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
    XCDS: tl.constexpr,
):
    """out = x W, W as in `_weight_block`: the down-projection and the input's gradient."""
    row_tiles = tl.load(tile_count)
    columns = tl.cdiv(N, BLOCK_N)
    step = tl.num_programs(0)
    for tile in tl.range(program_index(XCDS), row_tiles * columns, step, flatten=FLATTEN):
        row_tile, column_tile = locate(tile, row_tiles, columns, GROUP_M)
        expert = tl.load(tiles + row_tile * 4)
        start = tl.load(tiles + row_tile * 4 + 1)
        rows = tl.load(tiles + row_tile * 4 + 2)
        column = column_tile * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            if DESCRIPTORS:
                a = x.load([start, k])
            else:
                base = x + start.to(tl.int64) * K
                a = load_block(base, K, 0, rows, k, K, BLOCK_M, BLOCK_K, EVEN)
            b = _weight_block(
                weight, expert, column, k, K, N, BLOCK_N, BLOCK_K, TRANSPOSED, DESCRIPTORS, EVEN
            )
            acc = tl.dot(a, b, acc, input_precision="ieee")
        # In pieces: a descriptor's store goes through shared memory, and a whole tile there would
        # take the room of a pipeline stage.
        WIDTH: tl.constexpr = BLOCK_N // SUBTILES
        parts = pieces(acc, BLOCK_M, WIDTH, SUBTILES)
        for i in tl.static_range(SUBTILES):
            at = column + i * WIDTH
            store_rows(out, parts[i], N, start, rows, at, N, BLOCK_M, WIDTH, DESCRIPTORS)


@triton.jit
def _gate_and_up(
    hidden,
    F,
    start,
    rows,
    column,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
):
    base = hidden + start.to(tl.int64) * (2 * F)
    gate = load_block(base, 2 * F, 0, rows, column, F, BLOCK_M, WIDTH, WHOLE)
    up = load_block(base + F, 2 * F, 0, rows, column, F, BLOCK_M, WIDTH, WHOLE)
    return gate, up


@triton.jit
def _swiglu_gradient(
    dact,
    gate,
    up,
    dgate_out,
    dup_out,
    act_out,
    w,
    F,
    start,
    rows,
    column,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """From d(act), gate and up: store d(gate), d(up) and act for WIDTH columns; all times the
    rows' weights `w` (None: ones). Returns what the columns add to the weights' gradients."""
    g, u = gate.to(tl.float32), up.to(tl.float32)
    s = sigmoid(g)
    silu = g * s
    act = silu * u
    # Before the weights come in: of y = w (act W), d(w) is dy . (act W) = (dy W^T) . act.
    dw = tl.sum(dact * act, 1)
    if w is not None:
        dact *= w[:, None]
        act *= w[:, None]
    dup = dact * silu
    # d(silu) = s + g s (1 - s), of what is in registers already.
    dgate = dact * u * (s + silu - silu * s)
    store_rows(dgate_out, dgate, 2 * F, start, rows, column, F, BLOCK_M, WIDTH, False)
    store_rows(dup_out, dup, 2 * F, start, rows, column, F, BLOCK_M, WIDTH, False)
    store_rows(act_out, act, F, start, rows, column, F, BLOCK_M, WIDTH, False)
    return dw


@triton.jit
def activation_gradient_kernel(
    dy,
    weight,
    hidden,
    dgate_out,
    dup_out,
    act_out,
    weights,
    weight_parts,
    tiles,
    tile_count,
    total_rows,
    D,
    F,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    FLATTEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    XCDS: tl.constexpr,
):
    """d(act) = dy W_down, then through SwiGLU: d(gate), d(up), and act again for W_down's gradient.

    `hidden` is what the forward pass kept, gate and up. WHOLE: F is a multiple of BLOCK_N.

    With `weights` [N], y = weights * (act W_down^T) is what dy is the gradient of: all three come
    out weighted, and the sum of `weight_parts` [column tiles, N] is d(weights) = the rows'
    d(act) . act, which needs no rows of y.
    """
    row_tiles = tl.load(tile_count)
    columns = tl.cdiv(F, BLOCK_N)
    step = tl.num_programs(0)
    for tile in tl.range(program_index(XCDS), row_tiles * columns, step, flatten=FLATTEN):
        row_tile, column_tile = locate(tile, row_tiles, columns, GROUP_M)
        expert = tl.load(tiles + row_tile * 4)
        start = tl.load(tiles + row_tile * 4 + 1)
        rows = tl.load(tiles + row_tile * 4 + 2)
        column = column_tile * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, D, BLOCK_K):
            if DESCRIPTORS:
                a = dy.load([start, k])
            else:
                base = dy + start.to(tl.int64) * D
                a = load_block(base, D, 0, rows, k, D, BLOCK_M, BLOCK_K, EVEN)
            b = _weight_block(
                weight, expert, column, k, D, F, BLOCK_N, BLOCK_K, False, DESCRIPTORS, EVEN
            )
            acc = tl.dot(a, b, acc, input_precision="ieee")
        WIDTH: tl.constexpr = BLOCK_N // SUBTILES
        parts = pieces(acc, BLOCK_M, WIDTH, SUBTILES)
        gate, up = _gate_and_up(hidden, F, start, rows, column, BLOCK_M, WIDTH, WHOLE)
        r = tl.arange(0, BLOCK_M)
        w = None
        if weights is not None:
            # An index in range needs no mask, and nothing of a row past the end is stored.
            w = tl.load(weights + start + tl.minimum(r, rows - 1))
        dw = tl.zeros((BLOCK_M,), tl.float32)
        for i in tl.static_range(SUBTILES):
            at = column + i * WIDTH
            now, beside = gate, up
            if i + 1 < SUBTILES:
                # Before this piece's stores, which later loads may not overtake.
                gate, up = _gate_and_up(hidden, F, start, rows, at + WIDTH, BLOCK_M, WIDTH, WHOLE)
            dw += _swiglu_gradient(
                parts[i], now, beside, dgate_out, dup_out, act_out, w, F, start, rows, at,
                BLOCK_M, WIDTH,
            )  # fmt: skip
        if weights is not None:
            # A row of partial sums for each column tile, added by torch in one order: atomics would
            # not repeat bit for bit.
            part = weight_parts + column_tile.to(tl.int64) * total_rows + start
            tl.store(part + r, dw, mask=r < rows)
