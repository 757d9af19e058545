"""Launching the Triton row permutation, as operators that torch.compile and autograd know."""

from collections.abc import Iterator
from typing import Any

import torch
import triton

from ..forms import target_of
from ..spec import Variant
from ..targets import Target
from ..tuning import split, tuned
from .kernels import combine_backward_kernel, reduce_kernel, spread_kernel


def _config(name: str, target: Target, copies: int, width: int) -> dict[str, Any]:
    """Whole rows a program, of several tokens where k is small; `held` elements are in flight."""
    # Beside the rows, combine_backward holds gradients and running products in fp32.
    held = 2048 if name == "combine_backward" else 8192
    block = min(triton.next_power_of_2(max(width, 1)), 2048)
    tokens = max(1, min(16, held // (block * triton.next_power_of_2(copies))))
    default = {"BLOCK_T": tokens, "BLOCK_D": block, "num_warps": 4}
    return tuned(f"permute.{name}", target, f"k{copies}", default)


def _grid(config: dict[str, Any], tokens: int, width: int) -> tuple[int, int]:
    return triton.cdiv(tokens, config["BLOCK_T"]), triton.cdiv(width, config["BLOCK_D"])


@torch.library.custom_op("moelstrom::spread_rows", mutates_args=())
def spread_rows(x: torch.Tensor, inverse: torch.Tensor, copies: int) -> torch.Tensor:
    """`out[inverse[t * copies + j]] = x[t]`: [T, D] to [T * copies, D] of its dtype; `inverse`
    [T * copies] int32 or int64."""
    x, (tokens, width) = x.contiguous(), x.shape
    out = x.new_empty(tokens * copies, width)
    config = _config("spread", target_of(x), copies, width)
    grid = _grid(config, tokens, width)
    spread_kernel[grid](x, inverse, out, tokens, width, COPIES=copies, **config)
    return out


@spread_rows.register_fake
def _(x: torch.Tensor, inverse: torch.Tensor, copies: int) -> torch.Tensor:
    return x.new_empty(x.shape[0] * copies, x.shape[1])


def _spread_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, inverse, ctx.copies = inputs
    ctx.save_for_backward(inverse)


def _spread_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    (inverse,) = ctx.saved_tensors
    # Each is the other's gradient, so that neither direction needs atomics.
    return reduce_rows(grad, inverse, ctx.copies, None), None, None


spread_rows.register_autograd(_spread_backward, setup_context=_spread_context)


@torch.library.custom_op("moelstrom::reduce_rows", mutates_args=())
def reduce_rows(
    rows: torch.Tensor, inverse: torch.Tensor, copies: int, weights: torch.Tensor | None
) -> torch.Tensor:
    """`out[t] = sum_j weights[t, j] * rows[inverse[t * copies + j]]`: [T * copies, D] to [T, D].

    `weights` [T, copies] floating, or None for ones; `inverse` [T * copies] int32 or int64. Sums
    are fp32, the result has the dtype of `rows`.
    """
    rows, tokens, width = rows.contiguous(), rows.shape[0] // copies, rows.shape[1]
    weights = None if weights is None else weights.contiguous()
    out = rows.new_empty(tokens, width)
    config = _config("reduce", target_of(rows), copies, width)
    grid = _grid(config, tokens, width)
    reduce_kernel[grid](rows, inverse, weights, out, tokens, width, COPIES=copies, **config)
    return out


@reduce_rows.register_fake
def _(
    rows: torch.Tensor, inverse: torch.Tensor, copies: int, weights: torch.Tensor | None
) -> torch.Tensor:
    return rows.new_empty(rows.shape[0] // copies, rows.shape[1])


@torch.library.custom_op("moelstrom::combine_backward", mutates_args=())
def combine_backward(
    grad: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the weighted `reduce_rows` in `rows` [T * k, D] and `weights` [T, k], each in
    its dtype, `grad` [T, D] given."""
    grad, rows, weights = grad.contiguous(), rows.contiguous(), weights.contiguous()
    d_rows, d_weights = torch.empty_like(rows), torch.empty_like(weights)
    (tokens, width), copies = grad.shape, weights.shape[1]
    config = _config("combine_backward", target_of(grad), copies, width)
    # A program goes over the whole width, which a weight's gradient sums over.
    combine_backward_kernel[(triton.cdiv(tokens, config["BLOCK_T"]),)](
        grad,
        rows,
        inverse,
        weights,
        d_rows,
        d_weights,
        tokens,
        width,
        COPIES=copies,
        **config,
    )
    return d_rows, d_weights


@combine_backward.register_fake
def _(
    grad: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(rows), torch.empty_like(weights)


def _reduce_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    rows, inverse, ctx.copies, weights = inputs
    # Unweighted, the gradient is a spread: nothing but the permutation is needed.
    kept = (inverse,) if weights is None else (inverse, rows, weights)
    ctx.save_for_backward(*kept)


def _reduce_backward(
    ctx: Any, grad: torch.Tensor
) -> tuple[torch.Tensor, None, None, torch.Tensor | None]:
    inverse, *weighted = ctx.saved_tensors
    if not weighted:
        return spread_rows(grad, inverse, ctx.copies), None, None, None
    rows, weights = weighted
    d_rows, d_weights = combine_backward(grad, rows, inverse, weights)
    return d_rows, None, None, d_weights


reduce_rows.register_autograd(_reduce_backward, setup_context=_reduce_context)


def variants(target: Target) -> Iterator[Variant]:
    """Every kernel at width 2,048 for 16,384 tokens, top-1 and top-8, in bf16."""
    sizes = {"tokens": "i32", "width": "i32"}
    tile, index, fp32 = "*bf16", "*i64", "*fp32"
    arguments: dict[str, tuple[Any, dict[str, str]]] = {
        "spread": (spread_kernel, {"x": tile, "inverse": index, "out": tile}),
        "reduce": (
            reduce_kernel,
            {"rows": tile, "inverse": index, "weights": fp32, "out": tile},
        ),
        "combine_backward": (
            combine_backward_kernel,
            {
                "grad": tile,
                "rows": tile,
                "inverse": index,
                "weights": fp32,
                "d_rows": tile,
                "d_weights": fp32,
            },
        ),
    }
    for name, (kernel, pointers) in arguments.items():
        for copies in (1, 8):
            constants, options = split(_config(name, target, copies, 2048))
            block = constants["BLOCK_T"] * (
                2048 if name == "combine_backward" else constants["BLOCK_D"]
            )
            moved = 1 + copies * (2 if name == "combine_backward" else 1)
            yield Variant(
                operator=f"permute.{name}",
                kernel=kernel,
                signature={**pointers, **sizes},
                constexprs={"COPIES": copies, **constants},
                divisible=(*pointers, "width"),
                options=options,
                key=f"k{copies}",
                # A weight for each copy of each token.
                narrow_loads=copies * constants["BLOCK_T"],
                bytes=2 * block * moved,
                tiles=16_384 * 2048 // block,
                steps=1,
            )
