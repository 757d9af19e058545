"""Launching the Triton RMSNorm, as operators that torch.compile and autograd know."""

from collections.abc import Iterator
from typing import Any

import torch
import triton

from ..forms import target_of
from ..spec import Variant
from ..targets import Target
from ..tuning import split, tuned
from .kernels import backward_kernel, finish_kernel, forward_kernel

FINISH = {"BLOCK_P": 128, "BLOCK_D": 32, "num_warps": 8}
"""Tile of the last sum over the backward programs."""


def _block(target: Target, width: int, each: int, threads: int) -> dict[str, Any]:
    """Rows for one program, `each` elements a thread if `threads` are enough."""
    block = triton.next_power_of_2(max(width, 16))
    warps = max(1, min(threads, block // each) // target.warp_size)
    return {"BLOCK_R": max(1, 1024 // block), "BLOCK_D": block, "num_warps": warps}


def _forward_config(target: Target, width: int) -> dict[str, Any]:
    # Eight elements: 16 bytes of bf16.
    default = _block(target, width, 8, target.max_threads)
    return tuned("rms_norm.forward", target, f"d{width}", default)


def backward_config(target: Target, width: int, scaled: bool) -> dict[str, Any]:
    """BLOCK_R rows of BLOCK_D at a time, STAGES of them in flight, PROGRAMS on each compute unit,
    which leave a row of partial sums each."""
    if scaled:
        # Four scales and four sums are held beside the row: 128 registers a thread at least.
        block = _block(target, width, 4, min(target.max_threads, target.registers // 128))
        default = {**block, "STAGES": 2, "PROGRAMS": 2}
    else:
        default = {**_block(target, width, 8, target.max_threads), "STAGES": 3, "PROGRAMS": 4}
    name = "rms_norm.backward_scaled" if scaled else "rms_norm.backward"
    return tuned(name, target, f"d{width}", default)


def _forward(
    x: torch.Tensor,
    y: torch.Tensor | None,
    scales: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, width = x.contiguous(), x.shape[-1]
    y = None if y is None else y.contiguous()
    total = None if y is None else torch.empty_like(x)
    normed = torch.empty_like(x if y is None else y)
    config = _forward_config(target_of(x), width)
    rows = x.numel() // width
    forward_kernel[(triton.cdiv(rows, config["BLOCK_R"]),)](
        x, y, scales, weight.contiguous(), total, normed, rows, width, eps, **config
    )
    return x if total is None else total, normed


def _backward(
    d_total: torch.Tensor | None,
    d_normed: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    scales: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """dx, dy, d_weight and d_scales, as `backward_kernel` describes them."""
    width = x.shape[-1]
    d_total = None if d_total is None else d_total.contiguous()
    target = target_of(x)
    config = backward_config(target, width, scales is not None)
    rows = x.numel() // width
    blocks = triton.cdiv(rows, config["BLOCK_R"])
    # As many as fit the device at once: each leaves partial sums that somebody must add.
    programs = min(blocks, config.pop("PROGRAMS") * target.compute_units)
    dx = torch.empty_like(x)
    dy = None if scales is None or y is None else torch.empty_like(y)
    sums = 1 if scales is None else 4
    partial = x.new_empty(programs, sums, width, dtype=torch.float32)
    backward_kernel[(programs,)](
        d_total,
        d_normed.contiguous(),
        x,
        y,
        scales,
        weight.contiguous(),
        dx,
        dy,
        partial,
        rows,
        width,
        eps,
        **config,
    )
    d_weight = weight.new_empty(width)
    d_scales = None if scales is None else torch.empty_like(scales)
    grid = (triton.cdiv(width, FINISH["BLOCK_D"]), sums)
    finish_kernel[grid](partial, d_weight, d_scales, programs, width, **FINISH)
    return dx, dy, d_weight, d_scales


@torch.library.custom_op("moelstrom::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of `x` [..., D] with `weight` [D], in the dtype of `x`."""
    return _forward(x, None, None, weight, eps)[1]


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("moelstrom::add_rms_norm", mutates_args=())
def add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + y, its RMSNorm), both [..., D] as `x` and `y` of one dtype; `weight` [D]."""
    return _forward(x, y, None, weight, eps)


@add_rms_norm.register_fake
def _(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


@torch.library.custom_op("moelstrom::rms_norm_backward", mutates_args=())
def norm_backward(
    d_total: torch.Tensor | None,
    d_normed: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients in `total` [..., D] (so in both addends) and in `weight` [D], each in its dtype, of
    those of both results, [..., D] (`d_total` None: zero)."""
    d, _, d_weight, _ = _backward(d_total, d_normed, total.contiguous(), None, None, weight, eps)
    return d, d_weight


@norm_backward.register_fake
def _(
    d_total: torch.Tensor | None,
    d_normed: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return total.new_empty(total.shape), torch.empty_like(weight)


@torch.library.custom_op("moelstrom::scaled_add_rms_norm", mutates_args=())
def scaled_add_rms_norm(
    x: torch.Tensor, y: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """((a1 x + b1) + (a2 y + b2), its RMSNorm): [..., D] in the dtype of `x`, then in that of `y`;
    `scales` [4, D] are a1, b1, a2 and b2, `weight` is [D]."""
    return _forward(x, y, scales.contiguous(), weight, eps)


@scaled_add_rms_norm.register_fake
def _(
    x: torch.Tensor, y: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


@torch.library.custom_op("moelstrom::scaled_add_rms_norm_backward", mutates_args=())
def scaled_backward(
    d_total: torch.Tensor,
    d_normed: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients in `x`, `y` [..., D], `scales` [4, D] and `weight` [D], each in its dtype, of those
    of both results, [..., D]."""
    x, y, scales = x.contiguous(), y.contiguous(), scales.contiguous()
    dx, dy, d_weight, d_scales = _backward(d_total, d_normed, x, y, scales, weight, eps)
    assert dy is not None and d_scales is not None
    return dx, dy, d_scales, d_weight


@scaled_backward.register_fake
def _(
    d_total: torch.Tensor,
    d_normed: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape),
        y.new_empty(y.shape),
        scales.new_empty(scales.shape),
        torch.empty_like(weight),
    )


def _norm_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _norm_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    return *norm_backward(None, grad, *ctx.saved_tensors, ctx.eps), None


def _add_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    # The sum alone: its gradient is both addends', and the norm needs nothing else.
    _, _, weight, ctx.eps = inputs
    ctx.save_for_backward(output[0], weight)


def _add_backward(
    ctx: Any, d_total: torch.Tensor, d_normed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
    d, d_weight = norm_backward(d_total, d_normed, *ctx.saved_tensors, ctx.eps)
    return d, d, d_weight, None


def _scaled_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    # Not the sum: the backward pass makes it again from the addends, which it must read anyway for
    # the gradients of the scales.
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _scaled_backward(
    ctx: Any, d_total: torch.Tensor, d_normed: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    return *scaled_backward(d_total, d_normed, *ctx.saved_tensors, ctx.eps), None


rms_norm.register_autograd(_norm_backward, setup_context=_norm_context)
add_rms_norm.register_autograd(_add_backward, setup_context=_add_context)
scaled_add_rms_norm.register_autograd(_scaled_backward, setup_context=_scaled_context)


def variants(target: Target) -> Iterator[Variant]:
    """Both kernels in their three forms, for 16,384 rows of width 2,048 and a wide one in bf16 (the
    scaled residual stream in fp32), then the last sum."""
    for form, widths in {
        "plain": (2048, 7168),
        "add": (2048, 7168),
        "scaled": (2048, 4096),
    }.items():
        for width in widths:
            yield _variant(target, "forward", form, width)
            yield _variant(target, "backward", form, width)
    yield _finish_variant()


def _finish_variant() -> Variant:
    constants, options = split(FINISH)
    pointers = {"partial": "*fp32", "d_weight": "*bf16", "d_scales": "*fp32"}
    return Variant(
        operator="rms_norm.finish",
        kernel=finish_kernel,
        signature={**pointers, "programs": "i32", "width": "i32"},
        constexprs=constants,
        divisible=(*pointers, "width"),
        options=options,
    )


def _variant(target: Target, name: str, form: str, width: int) -> Variant:
    stream = "*fp32" if form == "scaled" else "*bf16"
    both = {"x": stream, "y": "*bf16", "scales": "*fp32", "weight": "*bf16"}
    if name == "forward":
        kernel, outputs = forward_kernel, {"total": stream, "normed": "*bf16"}
        absent = {"plain": ("y", "scales", "total"), "add": ("scales",), "scaled": ()}[form]
        config = _forward_config(target, width)
        programs = 16_384 // config["BLOCK_R"]
    else:
        kernel, outputs = backward_kernel, {"dx": stream, "dy": "*bf16", "partial": "*fp32"}
        both = {"d_total": stream, "d_normed": "*bf16", **both}
        # Without scales the kernel starts from the stored total: `y` is not read again.
        absent = {
            "plain": ("d_total", "y", "scales", "dy"),
            "add": ("y", "scales", "dy"),
            "scaled": (),
        }[form]
        config = backward_config(target, width, form == "scaled")
        # A backward program walks many blocks of rows.
        programs = config.pop("PROGRAMS") * target.compute_units
    pointers = {k: v for k, v in {**both, **outputs}.items() if k not in absent}
    constants, options = split(config)
    blocks = 16_384 // config["BLOCK_R"]
    element = sum(4 if pointers[p] == "*fp32" else 2 for p in pointers if p in ROWS)
    return Variant(
        operator=f"rms_norm.{name}_{form}",
        kernel=kernel,
        signature={**pointers, "rows": "i32", "width": "i32", "eps": "fp32"},
        constexprs={**dict.fromkeys(absent), **constants},
        divisible=(*pointers, "width"),
        options=options,
        key=f"d{width}",
        bytes=element * width * 16_384 / programs,
        tiles=programs,
        steps=triton.cdiv(blocks, programs),
    )


ROWS = ("d_total", "d_normed", "x", "y", "total", "normed", "dx", "dy")
"""Arguments with an element for each of the input's."""
