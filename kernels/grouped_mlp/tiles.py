"""What the grouped kernels share: blocks of ragged rows in two forms.

The descriptor form lets the copy hardware clip a block to its group: a ragged descriptor
(`triton.tools.ragged_tma`) bounds every access by the group's own last row, so that reads past it
give zeros and writes past it vanish, without a mask. The pointer form masks.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def load_block(
    base,
    stride,
    row,
    rows,
    column,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """[ROWS, COLUMNS] of a [rows, columns] matrix at (`row`, `column`).

    Rows past the end repeat the last one, as nothing stores their results; columns past the end
    are zero (`EVEN`: there are none).
    """
    r = tl.minimum(row + tl.arange(0, ROWS), rows - 1)
    c = column + tl.arange(0, COLUMNS)
    # 32 bits within the block, from a base of 64: wide offsets would take twice the registers.
    pointers = base + (r[:, None] * stride + c[None, :])
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=c[None, :] < columns, other=0.0)


@triton.jit
def row_offsets(order, copies, stride, start, rows, ROWS: tl.constexpr):
    """Where the rows that `order` [N] gathers to [start, start + ROWS) begin, in elements: row i of
    the copies is row `order[i] // copies` of the matrix. Rows past `rows` repeat the last one."""
    copy = tl.load(order + start + tl.minimum(tl.arange(0, ROWS), rows - 1))
    # There are fewer than 2^31 copies, and 32 bits divide faster.
    return (copy.to(tl.int32) // copies).to(tl.int64) * stride


@triton.jit
def load_gathered(base, offsets, column, columns, COLUMNS: tl.constexpr, EVEN: tl.constexpr):
    """COLUMNS columns of the rows at `offsets`; columns past the end are zero (`EVEN`: none)."""
    c = column + tl.arange(0, COLUMNS)
    pointers = base + (offsets[:, None] + c[None, :])
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=c[None, :] < columns, other=0.0)


@triton.jit
def load_zeroed(
    base,
    stride,
    rows,
    column,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """[ROWS, COLUMNS] of the [rows, columns] matrix at `base`; zeros past either end."""
    r = tl.arange(0, ROWS)
    c = column + tl.arange(0, COLUMNS)
    # Zeros, not the last row again as in `load_block`: these rows are what the product sums over.
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    return tl.load(base + (r[:, None] * stride + c[None, :]), mask=inside, other=0.0)


@triton.jit
def load_group_rows(desc, start, size, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows [row, row + ROWS) of the group [start, start + size); zeros past its end."""
    # The descriptor claims `limit` rows, and the group's last one is put at its end, so that the
    # bounds check falls there; the two leading indices bring the address back, modulo 2^64.
    limit = 0x40000000
    block = desc.load([limit, start + size, limit - size + row, column])
    return block.reshape(ROWS, COLUMNS)


@triton.jit
def store_rows(
    dst,
    value,
    stride,
    start,
    rows,
    column,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Store the first `rows` rows of a [ROWS, COLUMNS] block at row `start` of `dst`."""
    if DESCRIPTORS:
        block = value.to(dst.dtype).reshape(1, 1, ROWS, COLUMNS)
        limit = 0x40000000
        dst.store([limit, start + rows, limit - rows, column], block)
    else:
        r = tl.arange(0, ROWS)
        c = column + tl.arange(0, COLUMNS)
        base = dst + start.to(tl.int64) * stride
        inside = (r[:, None] < rows) & (c[None, :] < columns)
        block = value.to(dst.dtype.element_ty)
        tl.store(base + (r[:, None] * stride + c[None, :]), block, mask=inside)


@triton.jit
def sigmoid(x):
    """Logistic function of fp32 values, by the hardware's exponential and reciprocal."""
    if INTERPRETED:  # The interpreter has no device library.
        y = 1.0 / (1.0 + tl.exp(-x))
    else:
        y = libdevice.fast_dividef(1.0, 1.0 + libdevice.fast_expf(-x))
    return y
