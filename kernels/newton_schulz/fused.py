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
from .kernels import product_kernel


def config_for(name: str, target: Target, shape: str) -> dict[str, Any]:
    """Tile of "gram", "polynomial" or "update" for matrices "r<rows>_c<columns>"."""
    default = {**matmul_tile(target), "GROUP_M": 8}
    if name != "update":
        # A square tile wastes least along the diagonal, and is also held transposed.
        default["BLOCK_N"] = default["BLOCK_M"]
    return tuned(f"newton_schulz.{name}", target, shape, default)


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    config: Mapping[str, Any],
    target: Target,
    addend: torch.Tensor | None = None,
    scales: tuple[float, float] = (0.0, 1.0),
    symmetric: bool = False,
) -> None:
    """`out = scales[0] * addend + scales[1] * a @ b` (symmetric: `a @ b^T`, upper tiles) over
    contiguous stacks, as `product_kernel` describes."""
    (n, rows, inner), columns = a.shape, out.shape[-1]
    m, w, k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    tiles = tile_count(rows, columns, config, symmetric)
    # The copy engine wants row strides of whole 16 bytes.
    described = target.tensor_descriptors and all(
        t.stride(1) * t.element_size() % 16 == 0 for t in (a, b)
    )
    if described:
        a = TensorDescriptor.from_tensor(a, [1, m, k])
        b = TensorDescriptor.from_tensor(b, [1, w, k] if symmetric else [1, k, w])
    product_kernel[(n * tiles,)](
        a,
        b,
        addend,
        out,
        rows,
        columns,
        inner,
        tiles,
        *scales,
        SYMMETRIC=symmetric,
        DESCRIPTORS=described,
        XCDS=target.xcds,
        **config,
    )


def tile_count(rows: int, columns: int, config: Mapping[str, Any], symmetric: bool) -> int:
    """Tiles of one matrix that `product_kernel` is asked for."""
    across = triton.cdiv(columns, config["BLOCK_N"])
    if symmetric:
        return config["BLOCK_N"] // config["BLOCK_M"] * across * (across + 1) // 2
    return triton.cdiv(rows, config["BLOCK_M"]) * across


@torch.library.custom_op("moelstrom::newton_schulz", mutates_args=())
def newton_schulz(m: torch.Tensor, steps: int) -> torch.Tensor:
    """As the public function, in bf16 on a GPU; `m` is read in its own dtype."""
    if m.numel() == 0:
        return torch.empty_like(m)
    factor, b, c = COEFFICIENTS
    wide = m.mT if m.shape[-2] > m.shape[-1] else m
    target = target_of(m)
    x = wide.new_empty(wide.shape, dtype=torch.bfloat16 if m.is_cuda else m.dtype)
    norm = m.float().norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    torch.mul(wide, norm.reciprocal(), out=x)
    n, rows, columns = x.shape
    gram, poly = (x.new_empty(n, rows, rows) for _ in range(2))
    following = torch.empty_like(x)
    tile = {
        name: config_for(name, target, f"r{rows}_c{columns}")
        for name in ("gram", "polynomial", "update")
    }
    for _ in range(steps):
        product(x, x, gram, tile["gram"], target, symmetric=True)
        product(gram, gram, poly, tile["polynomial"], target, gram, (b, c), symmetric=True)
        product(poly, x, following, tile["update"], target, x, (factor, 1.0))
        x, following = following, x
    return torch.empty_like(m).copy_(x if wide is m else x.mT)


@newton_schulz.register_fake
def _(m: torch.Tensor, steps: int) -> torch.Tensor:
    return torch.empty_like(m)


SHAPES = ((2048, 2048), (1024, 2048), (768, 2048))
"""(rows, columns) of the experts of the benchmark's widths."""


def variants(target: Target) -> Iterator[Variant]:
    """The three products at the benchmark's shapes, 16 matrices, in bf16."""
    for rows, columns in SHAPES:
        for name in ("gram", "polynomial", "update"):
            yield _variant(name, target, rows, columns)


def _variant(name: str, target: Target, rows: int, columns: int) -> Variant:
    key, symmetric = f"r{rows}_c{columns}", name != "update"
    config = config_for(name, target, key)
    constants, options = split(config)
    m, w, k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    width = columns if name == "update" else rows
    inner = columns if name == "gram" else rows
    pointers = {"a": "*bf16", "b": "*bf16", "addend": "*bf16", "out": "*bf16"}
    if target.tensor_descriptors:
        right = (w, k) if symmetric else (k, w)
        pointers["a"] = f"tensordesc<bf16[1,{m},{k}]>"
        pointers["b"] = f"tensordesc<bf16[1,{right[0]},{right[1]}]>"
    absent = ("addend",) if name == "gram" else ()
    held = {k: v for k, v in pointers.items() if k not in absent}
    sizes = dict.fromkeys(("M", "N", "K", "tiles"), "i32")
    return Variant(
        operator=f"newton_schulz.{name}",
        kernel=product_kernel,
        signature={**held, **sizes, "alpha": "fp32", "beta": "fp32"},
        constexprs={
            **dict.fromkeys(absent),
            "SYMMETRIC": symmetric,
            "DESCRIPTORS": target.tensor_descriptors,
            "XCDS": target.xcds,
            **constants,
        },
        divisible=(*(k for k, v in held.items() if v.startswith("*")), "M", "N", "K"),
        options=options,
        key=key,
        matrix=True,
        flops=2 * m * w * inner,
        bytes=2 * ((m + w) * inner + m * w * (2 if symmetric else 1) + m * w * (name != "gram")),
        tiles=16 * tile_count(rows, width, config, symmetric),
        steps=triton.cdiv(inner, k),
    )
