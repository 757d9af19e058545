"""Triton kernels of the row permutation. A program moves BLOCK_T tokens' copies, 16 bytes a thread
and load; every row is read once and written once."""

import triton
import triton.language as tl


@triton.jit
def spread_kernel(
    x,
    inverse,
    out,
    tokens,
    width,
    COPIES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`out[inverse[t * COPIES + j]] = x[t]` for every j."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    valid = t < tokens
    mask = valid[:, None] & (d < width)[None, :]
    # Read once for all copies. 64 bits: T * k * D may pass 2^31 elements.
    tile = tl.load(x + t.to(tl.int64)[:, None] * width + d[None, :], mask=mask)
    for j in tl.static_range(COPIES):
        row = tl.load(inverse + t.to(tl.int64) * COPIES + j, mask=valid, other=0).to(tl.int64)
        tl.store(out + row[:, None] * width + d[None, :], tile, mask=mask)


@triton.jit
def reduce_kernel(
    rows,
    inverse,
    weights,
    out,
    tokens,
    width,
    COPIES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`out[t] = sum_j weights[t, j] * rows[inverse[t * COPIES + j]]`; `weights` None: ones."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    valid = t < tokens
    mask = valid[:, None] & (d < width)[None, :]
    # In the order of the copies, whatever their experts: the sum repeats bit for bit.
    total = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for j in tl.static_range(COPIES):
        slot = t.to(tl.int64) * COPIES + j
        row = tl.load(inverse + slot, mask=valid, other=0).to(tl.int64)
        part = tl.load(rows + row[:, None] * width + d[None, :], mask=mask, other=0.0)
        part = part.to(tl.float32)
        if weights is not None:
            weight = tl.load(weights + slot, mask=valid, other=0.0).to(tl.float32)
            part *= weight[:, None]
        total += part
    at = out + t.to(tl.int64)[:, None] * width + d[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def combine_backward_kernel(
    grad,
    rows,
    inverse,
    weights,
    d_rows,
    d_weights,
    tokens,
    width,
    COPIES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """With i = inverse[t * COPIES + j]: `d_rows[i] = weights[t, j] * grad[t]` and
    `d_weights[t, j] = grad[t] . rows[i]`."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    valid = t < tokens
    token = t.to(tl.int64)
    for j in tl.static_range(COPIES):
        slot = token * COPIES + j
        row = tl.load(inverse + slot, mask=valid, other=0).to(tl.int64)
        weight = tl.load(weights + slot, mask=valid, other=0.0).to(tl.float32)
        # Folded once a row: a sum in every step would be an exchange between warps.
        dot = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        for start in range(0, width, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            mask = valid[:, None] & (d < width)[None, :]
            # From the second copy on, the token's gradient comes from L1.
            g = tl.load(grad + token[:, None] * width + d[None, :], mask=mask, other=0.0)
            g = g.to(tl.float32)
            at = row[:, None] * width + d[None, :]
            dot += g * tl.load(rows + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(d_rows + at, (g * weight[:, None]).to(d_rows.dtype.element_ty), mask=mask)
        total = tl.sum(dot, 1).to(d_weights.dtype.element_ty)
        tl.store(d_weights + slot, total, mask=valid)
