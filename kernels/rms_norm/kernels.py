"""Triton kernels of RMSNorm after a residual addition. A row lies in one program's registers, so
every tensor is read once and written once."""

import triton
import triton.language as tl


@triton.jit
def _residual(x, y, scales, at, d, mask, width, rounded: tl.constexpr):
    """The rows to normalise in fp32: x; x + y; or (a1 x + b1) + (a2 y + b2), as stored."""
    t = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if y is not None:
        u = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        if scales is not None:
            inside = d < width
            a1 = tl.load(scales + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            b1 = tl.load(scales + width + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            a2 = tl.load(scales + 2 * width + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            b2 = tl.load(scales + 3 * width + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            # One vector b1 + b2 to hold over the rows.
            t = (a1 * t + a2 * u) + (b1 + b2)
        else:
            t += u
        # The backward pass sees what was stored, so the norm does too.
        t = t.to(rounded).to(tl.float32)
    return t


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
    t = _residual(x, y, scales, at, d, mask, width, x.dtype.element_ty)
    if y is not None:
        tl.store(total + at, t.to(total.dtype.element_ty), mask=mask)
    inverse_rms = tl.rsqrt(tl.sum(t * t, 1) / width + eps)
    w = tl.load(weight + d, mask=d < width, other=0.0).to(tl.float32)
    out = t * inverse_rms[:, None] * w[None, :]
    tl.store(normed + at, out.to(normed.dtype.element_ty), mask=mask)


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
):
    """Gradients of `forward_kernel` (`d_total` None: none). Without scales, `x` is the total and
    `dx` serves both addends. `partial` [programs, 1 or 4, width] fp32: this program's sums over
    its rows for weight, then a1, a2, and b1 and b2 together."""
    pid = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    inside = d < width
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    sum_w = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    if scales is not None:
        sum_a1 = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
        sum_a2 = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
        sum_b = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for block in range(pid, tl.cdiv(rows, BLOCK_R), tl.num_programs(0)):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * width + d[None, :]
        t = _residual(x, y, scales, at, d, mask, width, x.dtype.element_ty)
        g = tl.load(d_normed + at, mask=mask, other=0.0).to(tl.float32)
        inverse_rms = tl.rsqrt(tl.sum(t * t, 1) / width + eps)[:, None]
        unit = t * inverse_rms
        sum_w += g * unit
        g *= w
        grad = inverse_rms * (g - unit * (tl.sum(g * unit, 1) / width)[:, None])
        if d_total is not None:
            grad += tl.load(d_total + at, mask=mask, other=0.0).to(tl.float32)
        if scales is not None:
            # Outside the rows, x and y load as zeros but grad must not count in sum_b either.
            grad = tl.where(mask, grad, 0.0)
            sum_a1 += grad * tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
            sum_a2 += grad * tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
            sum_b += grad
            a1 = tl.load(scales + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            a2 = tl.load(scales + 2 * width + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            tl.store(dy + at, (a2 * grad).to(dy.dtype.element_ty), mask=mask)
            grad *= a1
        tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=mask)
    if scales is not None:
        out = partial + pid.to(tl.int64) * 4 * width + d
        tl.store(out + width, tl.sum(sum_a1, 0), mask=inside)
        tl.store(out + 2 * width, tl.sum(sum_a2, 0), mask=inside)
        tl.store(out + 3 * width, tl.sum(sum_b, 0), mask=inside)
    else:
        out = partial + pid.to(tl.int64) * width + d
    tl.store(out, tl.sum(sum_w, 0), mask=inside)
