"""The row permutation's kernels in Triton's interpreter, against plain torch.

Run by `test_operators.py` in a process of its own with TRITON_INTERPRET=1.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.kernels import permute
from moelstrom.kernels.permute import fused, plain

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 40),
    copies=st.integers(1, 9),
    width=st.sampled_from([1, 8, 24, 130]),
    dtype=st.sampled_from(list(TOLERANCE)),
    index=st.sampled_from([torch.int32, torch.int64]),
)
def test_gather_and_combine(
    agree: Callable[..., None],
    tokens: int,
    copies: int,
    width: int,
    dtype: torch.dtype,
    index: torch.dtype,
) -> None:
    g = torch.Generator().manual_seed(tokens * copies + width)
    order = torch.randperm(tokens * copies, generator=g).to(index)
    inverse = permute.inverse_permutation(order)
    x = torch.randn(tokens, width, generator=g).to(dtype)
    rows = torch.randn(tokens * copies, width, generator=g).to(dtype)
    weights = torch.rand(tokens, copies, generator=g)
    agree(
        lambda x: permute.gather_rows(x, order, inverse, copies),
        lambda x: plain.gather_rows(x, order, inverse, copies),
        [x],
        TOLERANCE[dtype],
    )
    agree(
        lambda rows, weights: permute.combine_rows(rows, order, inverse, weights),
        lambda rows, weights: plain.combine_rows(rows, order, inverse, weights),
        [rows, weights],
        TOLERANCE[dtype],
    )


def test_rows_wider_than_a_block(agree: Callable[..., None]) -> None:
    order = torch.randperm(6)
    inverse = permute.inverse_permutation(order)
    agree(
        lambda rows, weights: permute.combine_rows(rows, order, inverse, weights),
        lambda rows, weights: plain.combine_rows(rows, order, inverse, weights),
        [torch.randn(6, 2055), torch.rand(3, 2)],
        1e-4,
    )
    gathered = permute.gather_rows(torch.arange(6 * 2055.0).view(6, 2055), order, inverse)
    assert torch.equal(gathered, torch.arange(6 * 2055.0).view(6, 2055)[order])


def test_strided_inputs(agree: Callable[..., None]) -> None:
    order = torch.randperm(10)
    inverse = permute.inverse_permutation(order)
    agree(
        lambda rows, weights: permute.combine_rows(rows.T, order, inverse, weights.T),
        lambda rows, weights: plain.combine_rows(rows.T, order, inverse, weights.T),
        [torch.randn(16, 10), torch.rand(2, 5)],
        1e-5,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_registered_right(weighted: bool) -> None:
    inverse = torch.randperm(12)
    x, rows = (torch.randn(n, 8, requires_grad=True) for n in (4, 12))
    weights = torch.rand(4, 3, requires_grad=True) if weighted else None
    torch.library.opcheck(fused.spread_rows, (x, inverse, 3))
    torch.library.opcheck(fused.reduce_rows, (rows, inverse, 3, weights))
    if weights is not None:
        arguments = (x.detach(), rows.detach(), inverse, weights.detach())
        torch.library.opcheck(fused.combine_backward, arguments)


def test_compiles_whole() -> None:
    order = torch.randperm(12)
    inverse = permute.inverse_permutation(order)

    def layer(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = permute.gather_rows(x, order, inverse, 3)
        return permute.combine_rows(rows.sin(), order, inverse, weights)

    inputs = [torch.randn(4, 8, requires_grad=True), torch.rand(4, 3, requires_grad=True)]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        torch.autograd.grad(compiled(*inputs).sum(), inputs),
        torch.autograd.grad(layer(*inputs).sum(), inputs),
        strict=True,
    ):
        assert torch.equal(a, b)
