"""Triton kernels of RMSNorm after a residual addition. A row lies in one program's registers, so
every tensor is read once and written once."""

import triton
import triton.language as tl


@triton.jit
def _load(x, at, mask):
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _scales(scales, d, width):
    """a1, a2, and b1 + b2 as one vector to hold over the rows."""
    inside = (d < width)[None, :]
    a1 = _load(scales, d[None, :], inside)
    a2 = _load(scales, 2 * width + d[None, :], inside)
    return (
        a1,
        a2,
        _load(scales, width + d[None, :], inside) + _load(scales, 3 * width + d[None, :], inside),
    )


@triton.jit
def forward_kernel(
    x,
    y,
    scales,
    weight,
    total,
    normed,
    rows,
    width,
    eps,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`total` is the residual sum (None where `y` is), `normed` = total / rms(total) * weight."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (d < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + d[None, :]
    t = _load(x, at, mask)
    if y is not None:
        u = _load(y, at, mask)
        if scales is not None:
            a1, a2, b = _scales(scales, d, width)
            t = (a1 * t + a2 * u) + b
        else:
            t += u
        # The backward pass sees what was stored, so the norm does too.
        rounded = t.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=mask)
        t = rounded.to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(t * t, 1) / width + eps)
    w = tl.load(weight + d, mask=d < width, other=0.0).to(tl.float32)
    out = t * inverse_rms[:, None] * w[None, :]
    tl.store(normed + at, out.to(normed.dtype.element_ty), mask=mask)


@triton.jit
def _add_both(a, b, c, d):
    return a + c, b + d


@triton.jit
def backward_kernel(
    d_total,
    d_normed,
    x,
    y,
    scales,
    weight,
    dx,
    dy,
    partial,
    rows,
    width,
    eps,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of `forward_kernel` (`d_total` None: none). Without scales, `x` is the total and
    `dx` serves both addends. `partial` [programs, 1 or 4, width] fp32: this program's sums over
    its rows for weight, then a1, b1 (b2 has the same) and a2. STAGES - 1 blocks of rows are on
    their way while one is worked on."""
    pid = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    inside = d < width
    w = _load(weight, d[None, :], inside[None, :])
    # Added over the block's rows after the loop: in it that would be an exchange in every step.
    sum_w = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    if scales is not None:
        a1, a2, b = _scales(scales, d, width)
        sum_a1 = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
        sum_a2 = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
        sum_b = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    blocks = tl.cdiv(rows, BLOCK_R)
    # A fixed grid, so that the partial sums are as many as the programs, not as the rows.
    for block in tl.range(pid, blocks, tl.num_programs(0), num_stages=STAGES):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * width + d[None, :]
        t = _load(x, at, mask)
        g = _load(d_normed, at, mask)
        if scales is not None:
            v, u = t, _load(y, at, mask)
            # As `forward_kernel` stored it.
            t = ((a1 * v + a2 * u) + b).to(x.dtype.element_ty).to(tl.float32)
        # sum(g w unit) = inverse_rms sum(g w t): both sums in one exchange between warps.
        square, along = tl.reduce((t * t, g * w * t), 1, _add_both)
        inverse_rms = tl.rsqrt(square / width + eps)[:, None]
        along = along[:, None] * inverse_rms / width
        unit = t * inverse_rms
        sum_w += g * unit
        grad = inverse_rms * (g * w - unit * along)
        if d_total is not None:
            grad += _load(d_total, at, mask)
        if scales is not None:
            sum_a1 += grad * v
            sum_a2 += grad * u
            # Outside the rows g and d_total, so grad, are zero.
            sum_b += grad
            tl.store(dy + at, (a2 * grad).to(dy.dtype.element_ty), mask=mask)
            grad *= a1
        tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=mask)
    if scales is not None:
        out = partial + pid.to(tl.int64) * 4 * width + d
        tl.store(out + width, tl.sum(sum_a1, 0), mask=inside)
        tl.store(out + 2 * width, tl.sum(sum_b, 0), mask=inside)
        tl.store(out + 3 * width, tl.sum(sum_a2, 0), mask=inside)
    else:
        out = partial + pid.to(tl.int64) * width + d
    tl.store(out, tl.sum(sum_w, 0), mask=inside)


@triton.jit
def finish_kernel(
    partial,
    d_weight,
    d_scales,
    programs,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`partial` of `backward_kernel` summed over its programs, always in one order, to `d_weight`
    [width] and `d_scales` [4, width] (a1, b1, a2, b2; None: none). The second axis of the grid
    goes over the 1 or 4 sums."""
    # Atomics onto one row would need no such pass, but not repeat bit for bit.
    which = tl.program_id(1)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    stride = tl.num_programs(1) * width
    acc = tl.zeros([BLOCK_P, BLOCK_D], dtype=tl.float32)
    for first in range(0, programs, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        at = p.to(tl.int64)[:, None] * stride + which * width + d[None, :]
        acc += _load(partial, at, (p < programs)[:, None] & (d < width)[None, :])
    out = tl.sum(acc, 0)
    if which == 0:
        tl.store(d_weight + d, out.to(d_weight.dtype.element_ty), mask=d < width)
    if d_scales is not None:
        rounded = out.to(d_scales.dtype.element_ty)
        if which > 0:
            tl.store(d_scales + (which - 1) * width + d, rounded, mask=d < width)
        if which == 2:
            tl.store(d_scales + 3 * width + d, rounded, mask=d < width)
