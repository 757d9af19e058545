"""Newton-Schulz by symmetric Triton products."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from ..forms import target_of
from ..spec import Variant
from ..targets import Target
from ..tuning import matmul_tile, split, tuned
from .coefficients import COEFFICIENTS
from .kernels import enter_kernel, product_kernel

ENTER = {"BLOCK_R": 64, "BLOCK_C": 64, "num_warps": 4}
"""Block of the first pass, which rounds the momentum and sums its squares."""
PRODUCTS = ("gram", "polynomial", "update", "final")
"""A = X X^T; aI + bA + cA^2; their product with X; the same for the last step, in the caller's
dtype and order of axes."""


def config_for(name: str, target: Target, shape: str) -> dict[str, Any]:
    """Tile of one of PRODUCTS for matrices "r<rows>_c<columns>"; FLATTEN and PROGRAMS as in
    `grouped_mlp.configs`."""
    tile = matmul_tile(target)
    if name in ("gram", "polynomial"):
        # A square tile wastes least along the diagonal, and is also held transposed.
        tile["BLOCK_N"] = tile["BLOCK_M"]
    default = {
        **tile,
        "GROUP_M": 8,
        "SUBTILES": max(1, tile["BLOCK_N"] // 128),
        # Triton 3.6 cannot flatten the loop around the branches of a symmetric tile.
        "FLATTEN": target.tensor_descriptors and name in ("update", "final"),
        "PROGRAMS": 1,
    }
    item = 4 if name == "final" else 2
    while default["num_stages"] > 1 and _shared(target, default, item) > target.shared_bytes:
        default["num_stages"] -= 1
    return tuned(f"newton_schulz.{name}", target, shape, default)


def _shared(target: Target, c: Mapping[str, Any], item: int) -> int:
    """Shared memory of the main loop and, beside it, of a piece on its way out."""
    stage = (c["BLOCK_M"] + c["BLOCK_N"]) * c["BLOCK_K"] * 2
    total = target.pipeline_bytes(stage, c["num_stages"])
    if target.tensor_descriptors:
        total += c["BLOCK_M"] * c["BLOCK_N"] // c["SUBTILES"] * item + 1024
    return total


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    config: Mapping[str, Any],
    target: Target,
    addend: torch.Tensor | None = None,
    scales: tuple[float, float, float] = (0.0, 1.0, 0.0),
    factors: torch.Tensor | None = None,
    symmetric: bool = False,
    transposed: bool = False,
) -> None:
    """`product_kernel` over contiguous stacks, into `out`: `a` [n, M, K] and `b` [n, K, N] (if
    `symmetric` [n, M, K]) bf16, `out` [n, M, N] ([n, N, M] if `transposed`), `addend` [n, M, M]
    bf16, `factors` [n] fp32; `scales` are its alpha, beta and gamma."""
    (n, rows, inner), columns = a.shape, out.shape[1 if transposed else 2]
    m, w, k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    piece = w // config["SUBTILES"]
    tensors = [a, b, out] if addend is None else [a, b, out, addend]
    # The copy engine wants addresses and row strides of whole 16 bytes.
    described = target.tensor_descriptors and all(
        t.stride(1) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0 for t in tensors
    )

    def block(t: torch.Tensor | None, *sizes: int) -> Any:
        return TensorDescriptor.from_tensor(t, [1, *sizes]) if described and t is not None else t

    chosen = dict(config)
    resident = target.compute_units * chosen.pop("PROGRAMS")
    chosen["FLATTEN"] = chosen["FLATTEN"] and described
    product_kernel[(min(n * tile_count(rows, columns, config, symmetric), resident),)](
        block(a, m, k),
        block(b, *((w, k) if symmetric else (k, w))),
        block(addend, m, piece),
        factors,
        block(out, *((piece, m) if transposed else (m, piece))),
        n,
        rows,
        columns,
        inner,
        *scales,
        SYMMETRIC=symmetric,
        TRANSPOSED=transposed,
        DESCRIPTORS=described,
        XCDS=target.xcds,
        **chosen,
    )


def tile_count(rows: int, columns: int, config: Mapping[str, Any], symmetric: bool) -> int:
    """Tiles of one matrix that `product_kernel` computes."""
    across = triton.cdiv(columns, config["BLOCK_N"])
    if symmetric:
        return config["BLOCK_N"] // config["BLOCK_M"] * across * (across + 1) // 2
    return triton.cdiv(rows, config["BLOCK_M"]) * across


def _enter(wide: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(`wide` [n, r, c] contiguous in `dtype`, 1 / its Frobenius norms [n] fp32): one pass."""
    n, rows, columns = wide.shape
    grid = (triton.cdiv(columns, ENTER["BLOCK_C"]), triton.cdiv(rows, ENTER["BLOCK_R"]), n)
    x = wide.new_empty(wide.shape, dtype=dtype)
    partial = wide.new_empty(n, grid[0] * grid[1], dtype=torch.float32)
    enter_kernel[grid](wide, x, partial, rows, columns, *wide.stride(), **ENTER)
    return x, partial.sum(1).sqrt().clamp_min(1e-7).reciprocal()


@torch.library.custom_op("moelstrom::newton_schulz", mutates_args=())
def newton_schulz(m: torch.Tensor, steps: int) -> torch.Tensor:
    """As the public function, for `m` [n, r, c] in any floating dtype, bf16 inside; returns its
    shape and dtype, contiguous. ValueError: `steps` below 1."""
    if steps < 1:
        raise ValueError(f"steps {steps}: at least 1")
    out = torch.empty_like(m, memory_format=torch.contiguous_format)
    if m.numel() == 0:
        return out
    tall, target = m.shape[-2] > m.shape[-1], target_of(m)
    x, inverse = _enter(m.mT if tall else m, torch.bfloat16 if m.is_cuda else m.dtype)
    n, rows, columns = x.shape
    gram, poly = (x.new_empty(n, rows, rows) for _ in range(2))
    # X and the next X in turn: a product cannot write over its own factor.
    following = torch.empty_like(x)
    tile = {name: config_for(name, target, f"r{rows}_c{columns}") for name in PRODUCTS}
    factor, b, c = COEFFICIENTS
    for step in range(steps):
        # X is left unscaled at first: the first step's products bring the norm in.
        factors = None if step else inverse
        squares = None if step else inverse.square()
        product(x, x, gram, tile["gram"], target, factors=squares, symmetric=True)
        scales = (b, c, factor)
        product(gram, gram, poly, tile["polynomial"], target, gram, scales, symmetric=True)
        if step + 1 == steps:
            product(poly, x, out, tile["final"], target, factors=factors, transposed=tall)
        else:
            product(poly, x, following, tile["update"], target, factors=factors)
        x, following = following, x
    return out


@newton_schulz.register_fake
def _(m: torch.Tensor, steps: int) -> torch.Tensor:
    return torch.empty_like(m)


SHAPES = ((2048, 2048), (1024, 2048), (768, 2048))
"""(rows, columns) of the experts of the benchmark's widths."""


def variants(target: Target) -> Iterator[Variant]:
    """The products at the benchmark's shapes, 16 matrices, in bf16, the last to fp32 as it is and
    transposed; and the first pass."""
    for rows, columns in SHAPES:
        for name in PRODUCTS:
            yield _variant(name, target, rows, columns)
        yield _variant("final", target, rows, columns, transposed=True)
    constants, options = split(ENTER)
    yield Variant(
        operator="newton_schulz.enter",
        kernel=enter_kernel,
        signature={
            **{"m": "*fp32", "x": "*bf16", "partial": "*fp32"},
            **dict.fromkeys(("rows", "columns", "stride", "row_stride"), "i32"),
        },
        constexprs={"column_stride": 1, **constants},
        divisible=("m", "x", "partial", "rows", "columns", "stride", "row_stride"),
        options=options,
    )


def _variant(
    name: str, target: Target, rows: int, columns: int, transposed: bool = False
) -> Variant:
    key, symmetric = f"r{rows}_c{columns}", name in ("gram", "polynomial")
    config = config_for(name, target, key)
    del config["PROGRAMS"]
    constants, options = split(config)
    m, w, k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    piece = w // config["SUBTILES"]
    width = rows if symmetric else columns
    inner = columns if name == "gram" else rows

    def matrix(*block: int, dtype: str = "bf16") -> str:
        sizes = ",".join(map(str, block))
        return f"tensordesc<{dtype}[1,{sizes}]>" if target.tensor_descriptors else f"*{dtype}"

    pointers = {
        "a": matrix(m, k),
        "b": matrix(*((w, k) if symmetric else (k, w))),
        "addend": matrix(m, piece),
        "factors": "*fp32",
        "out": matrix(
            *((piece, m) if transposed else (m, piece)), dtype="fp32" if name == "final" else "bf16"
        ),
    }
    # As in every step but the first, which alone has factors, except that gram always has them.
    absent = {"gram": ("addend",), "polynomial": ("factors",)}.get(name, ("addend", "factors"))
    held = {k: v for k, v in pointers.items() if k not in absent}
    sizes = dict.fromkeys(("matrices", "M", "N", "K"), "i32")
    moved = (4 if name == "final" else 2) * (1 + symmetric) + 2 * (name == "polynomial")
    return Variant(
        operator=f"newton_schulz.{name}",
        kernel=product_kernel,
        signature={**held, **sizes, **dict.fromkeys(("alpha", "beta", "gamma"), "fp32")},
        constexprs={
            **dict.fromkeys(absent),
            "SYMMETRIC": symmetric,
            "TRANSPOSED": transposed,
            "DESCRIPTORS": target.tensor_descriptors,
            "XCDS": target.xcds,
            **constants,
        },
        divisible=(*(k for k, v in held.items() if v.startswith("*")), "M", "N", "K"),
        options=options,
        key=key,
        matrix=True,
        # The loop that goes over tiles reads a matrix's factor.
        narrow_loads=1,
        flops=2 * m * w * inner,
        bytes=2 * (m + w) * inner + m * w * moved,
        tiles=16 * tile_count(rows, width, config, symmetric),
        steps=triton.cdiv(inner, k),
    )
