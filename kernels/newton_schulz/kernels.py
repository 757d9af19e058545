"""The Triton product behind Newton-Schulz: batched, fused with its addend, symmetric if asked."""

import triton
import triton.language as tl

from ..order import locate, program_index


@triton.jit
def _tile(t, rows, columns, SYMMETRIC: tl.constexpr, RATIO: tl.constexpr, GROUP_M: tl.constexpr):
    """(row block, column block) of the t-th tile.

    Symmetric: those that touch the upper triangle, column after column; column j has
    RATIO * (j + 1) row blocks, the last perhaps past the matrix. Otherwise GROUP_M rows at a time.
    """
    if SYMMETRIC:
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
def product_kernel(
    a,
    b,
    addend,
    out,
    M,
    N,
    K,
    tiles,
    alpha,
    beta,
    SYMMETRIC: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    XCDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """`out = alpha * addend + beta * a @ op(b)` for each matrix of stacks (`addend` None: zero).

    `a` [n, M, K]; `out` and `addend` [n, M, N]. SYMMETRIC: op(b) = b^T with `b` [n, N, K], the
    product is known to be symmetric, and only the `tiles` tiles that touch the upper triangle are
    computed and stored twice, as they are and transposed. Otherwise op(b) = b, [n, K, N].
    """
    tl.static_assert(BLOCK_N % BLOCK_M == 0)
    program = program_index(XCDS)
    matrix = program // tiles
    i, j = _tile(
        program % tiles, tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N),
        SYMMETRIC, BLOCK_N // BLOCK_M, GROUP_M,
    )  # fmt: skip
    row, column = i * BLOCK_M, j * BLOCK_N
    if row < M:
        acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            left = _block(a, matrix, row, k, M, K, BLOCK_M, BLOCK_K, DESCRIPTORS)
            if SYMMETRIC:
                right = _block(b, matrix, column, k, N, K, BLOCK_N, BLOCK_K, DESCRIPTORS)
                acc = tl.dot(left, right.T, acc, input_precision="ieee")
            else:
                right = _block(b, matrix, k, column, K, N, BLOCK_K, BLOCK_N, DESCRIPTORS)
                acc = tl.dot(left, right, acc, input_precision="ieee")
        m = row + tl.arange(0, BLOCK_M)
        n = column + tl.arange(0, BLOCK_N)
        inside = (m < M)[:, None] & (n < N)[None, :]
        start = matrix.to(tl.int64) * M * N
        at = start + m.to(tl.int64)[:, None] * N + n[None, :]
        acc *= beta
        if addend is not None:
            acc += alpha * tl.load(addend + at, mask=inside, other=0.0).to(tl.float32)
        tile = acc.to(out.dtype.element_ty)
        if SYMMETRIC:
            mirrored = start + n.to(tl.int64)[:, None] * N + m[None, :]
            if row + BLOCK_M > column:
                # On the diagonal every element has one writer, so the result is symmetric to the
                # bit and no two programs write one place.
                upper = m[:, None] <= n[None, :]
                tl.store(out + at, tile, mask=inside & upper)
                tl.store(out + mirrored, tile.T, mask=inside.T & (m[None, :] < n[:, None]))
            else:
                tl.store(out + at, tile, mask=inside)
                tl.store(out + mirrored, tile.T, mask=inside.T)
        else:
            tl.store(out + at, tile, mask=inside)
