"""The grouped forms against plain loops: forward, backward, odd sizes, empty experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.kernels.grouped_mlp import grouped_mlp, grouped_mlp_reference, sort_by_expert
from moelstrom.kernels.permute import gather_rows, inverse_permutation


def _inputs(counts: list[int], hidden: int, width: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    g = torch.Generator().manual_seed(sum(counts))
    shapes = [(sum(counts), hidden), (len(counts), 2 * width, hidden), (len(counts), hidden, width)]
    tensors = [torch.randn(s, generator=g, requires_grad=True) for s in shapes]
    return tensors, torch.tensor(counts).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 7], [0, 0], [1], [129, 63, 0, 0, 17]])
@pytest.mark.parametrize(("hidden", "width"), [(8, 16), (24, 40)])
def test_grouped_mlp(counts: list[int], hidden: int, width: int) -> None:
    results = []
    for form in (grouped_mlp, grouped_mlp_reference):
        tensors, offsets = _inputs(counts, hidden, width)
        x, gate_up, down = tensors
        y = form(x, gate_up, down, offsets)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append([y, *(t.grad for t in tensors)])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 4), st.integers(0, 2**31))
def test_gather_rows_matches_indexing(rows: int, copies: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows * copies, generator=g)
    weight = torch.randn(rows * copies, 3, generator=g)
    x = torch.randn(rows, 3, generator=g, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    y = gather_rows(x, order, inverse_permutation(order), copies)
    (y * weight).sum().backward()
    plain = z[order // copies]
    (plain * weight).sum().backward()
    assert torch.equal(y, plain)
    torch.testing.assert_close(x.grad, z.grad)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40))
def test_sort_by_expert(experts: list[int]) -> None:
    order, inverse, offsets = sort_by_expert(torch.tensor(experts, dtype=torch.int64), 8)
    assert order.tolist() == sorted(range(len(experts)), key=experts.__getitem__)
    assert order[inverse].tolist() == list(range(len(experts)))
    assert offsets.tolist() == [sum(e <= i for e in experts) for i in range(8)]
