"""The Triton kernels behind Newton-Schulz: the first pass over the momentum, and the products,
batched, fused with their addend, symmetric if asked."""

import triton
import triton.language as tl

from ..order import locate, program_index
from ..split import pieces


@triton.jit
def _tile(t, rows, columns, SYMMETRIC: tl.constexpr, RATIO: tl.constexpr, GROUP_M: tl.constexpr):
    """(row block, column block) of the t-th tile.

    Symmetric: those that touch the upper triangle, column after column; column j has
    RATIO * (j + 1) row blocks, the last perhaps past the matrix. Otherwise GROUP_M rows at a time.
    """
    if SYMMETRIC:
        # In closed form: a search would be scalar work that nothing hides.
        root = tl.sqrt_rn(8.0 * (t // RATIO).to(tl.float32) + 1.0)
        j = ((root - 1.0) * 0.5).to(tl.int32)
        # The root is rounded: step back or on by one.
        j = tl.where(RATIO * j * (j + 1) // 2 > t, j - 1, j)
        j = tl.where(RATIO * (j + 1) * (j + 2) // 2 <= t, j + 1, j)
        i = t - RATIO * j * (j + 1) // 2
    else:
        i, j = locate(t, rows, columns, GROUP_M)
    return i, j


@triton.jit
def _block(
    x,
    matrix,
    row,
    column,
    ROWS,
    COLUMNS,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Block [BLOCK_R, BLOCK_C] of a matrix of the contiguous stack `x`, zero outside it."""
    if DESCRIPTORS:
        block = x.load([matrix, row, column]).reshape(BLOCK_R, BLOCK_C)
    else:
        r = row + tl.arange(0, BLOCK_R)
        c = column + tl.arange(0, BLOCK_C)
        at = matrix.to(tl.int64) * ROWS * COLUMNS + r.to(tl.int64)[:, None] * COLUMNS + c[None, :]
        block = tl.load(x + at, mask=(r < ROWS)[:, None] & (c < COLUMNS)[None, :], other=0.0)
    return block


@triton.jit
def _store(
    x,
    block,
    matrix,
    row,
    column,
    ROWS,
    COLUMNS,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """The reverse of `_block`: what lies outside the matrix is dropped."""
    if DESCRIPTORS:
        x.store([matrix, row, column], block.to(x.dtype).reshape(1, BLOCK_R, BLOCK_C))
    else:
        r = row + tl.arange(0, BLOCK_R)
        c = column + tl.arange(0, BLOCK_C)
        at = matrix.to(tl.int64) * ROWS * COLUMNS + r.to(tl.int64)[:, None] * COLUMNS + c[None, :]
        inside = (r < ROWS)[:, None] & (c < COLUMNS)[None, :]
        tl.store(x + at, block.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _store_square(
    acc,
    addend,
    out,
    matrix,
    row,
    column,
    M,
    alpha,
    gamma,
    BLOCK: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """A [BLOCK, BLOCK] square of a symmetric result, in both its places; nothing if it lies below
    the diagonal."""
    if row <= column:
        if addend is not None:
            block = _block(addend, matrix, row, column, M, M, BLOCK, BLOCK, DESCRIPTORS)
            acc += alpha * block.to(tl.float32)
        DTYPE: tl.constexpr = out.dtype if DESCRIPTORS else out.dtype.element_ty
        if row < column:
            # Rounded before it is turned around: half the bytes go through shared memory.
            tile = acc.to(DTYPE)
            _store(out, tile, matrix, row, column, M, M, BLOCK, BLOCK, DESCRIPTORS)
            _store(out, tile.T, matrix, column, row, M, M, BLOCK, BLOCK, DESCRIPTORS)
        else:
            # By the place in the matrix, lest the compiler holds the masks from tile to tile.
            below = (row + tl.arange(0, BLOCK))[:, None] - (column + tl.arange(0, BLOCK))[None, :]
            tile = tl.where(below == 0, acc + gamma, acc).to(DTYPE)
            # The upper half serves both, so that the result is symmetric to the bit.
            tile = tl.where(below <= 0, tile, tile.T)
            _store(out, tile, matrix, row, column, M, M, BLOCK, BLOCK, DESCRIPTORS)


@triton.jit
def _finish(
    acc,
    addend,
    out,
    matrix,
    row,
    column,
    M,
    N,
    alpha,
    gamma,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Add what is to be added to a piece of the product, and store it."""
    if SYMMETRIC:
        _store_square(acc, addend, out, matrix, row, column, M, alpha, gamma, ROWS, DESCRIPTORS)
    elif TRANSPOSED:
        _store(out, acc.T, matrix, column, row, N, M, COLUMNS, ROWS, DESCRIPTORS)
    else:
        _store(out, acc, matrix, row, column, M, N, ROWS, COLUMNS, DESCRIPTORS)


@triton.jit
def product_kernel(
    a,
    b,
    addend,
    factors,
    out,
    matrices,
    M,
    N,
    K,
    alpha,
    beta,
    gamma,
    SYMMETRIC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    XCDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Products of stacks of matrices; a fixed grid walks the tiles of all.

    SYMMETRIC: `out = alpha * addend + beta * a @ b^T + gamma * I` for `a` and `b` [n, M, K] and
    `addend` (None: zero) and `out` [n, M, M], the product known to be symmetric: only tiles that
    touch the upper triangle are computed, and stored twice, as they are and transposed. Otherwise
    `out = beta * a @ b` for [n, M, K] and [n, K, N], out [n, M, N], or [n, N, M] if TRANSPOSED.
    `factors` [n] fp32 (None: ones) scale each matrix's product. The epilogue takes the tile in
    SUBTILES pieces.
    """
    RATIO: tl.constexpr = BLOCK_N // BLOCK_M
    PIECE: tl.constexpr = BLOCK_N // SUBTILES
    tl.static_assert(SUBTILES == 1 or SUBTILES == 2)
    tl.static_assert(not SYMMETRIC or PIECE == BLOCK_M)
    row_tiles, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tiles = RATIO * columns * (columns + 1) // 2 if SYMMETRIC else row_tiles * columns
    step = tl.num_programs(0)
    for tile in tl.range(program_index(XCDS), matrices * tiles, step, flatten=FLATTEN):
        matrix = tile // tiles
        i, j = _tile(tile % tiles, row_tiles, columns, SYMMETRIC, RATIO, GROUP_M)
        row, column = i * BLOCK_M, j * BLOCK_N
        acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            left = _block(a, matrix, row, k, M, K, BLOCK_M, BLOCK_K, DESCRIPTORS)
            if SYMMETRIC:
                right = _block(b, matrix, column, k, N, K, BLOCK_N, BLOCK_K, DESCRIPTORS)
                acc = tl.dot(left, right.T, acc, input_precision="ieee")
            else:
                right = _block(b, matrix, k, column, K, N, BLOCK_K, BLOCK_N, DESCRIPTORS)
                acc = tl.dot(left, right, acc, input_precision="ieee")
        # Scaled here: on a factor the scale would be rounded to bf16 with it.
        acc *= beta
        if factors is not None:
            acc *= tl.load(factors + matrix)
        parts = pieces(acc, BLOCK_M, PIECE, SUBTILES)
        for i in tl.static_range(SUBTILES):
            _finish(
                parts[i], addend, out, matrix, row, column + i * PIECE, M, N, alpha, gamma,
                BLOCK_M, PIECE, SYMMETRIC, TRANSPOSED, DESCRIPTORS,
            )  # fmt: skip


@triton.jit
def enter_kernel(
    m,
    x,
    partial,
    rows,
    columns,
    stride,
    row_stride,
    column_stride,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`x` [n, rows, columns], contiguous, = `m` with the strides given, in the dtype of `x`;
    `partial` [n, row blocks, column blocks] fp32 = the sum of squares of each block."""
    matrix = tl.program_id(2).to(tl.int64)
    blocks = tl.num_programs(1) * tl.num_programs(0)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (r < rows)[:, None] & (c < columns)[None, :]
    r, c = r.to(tl.int64)[:, None], c.to(tl.int64)[None, :]
    at = matrix * stride + r * row_stride + c * column_stride
    block = tl.load(m + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + matrix * rows * columns + r * columns + c, block.to(x.dtype.element_ty), inside)
    # A sum of its own for each block, added later in one order; of the values before rounding.
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial + matrix * blocks + place, tl.sum(tl.sum(block * block, 1), 0))
