"""The expert MLP's kernels in Triton's interpreter, against a loop over experts.

Run by `test_operators.py` in a process of its own with TRITON_INTERPRET=1.
"""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moelstrom.kernels.grouped_mlp import (
    configs,
    grouped_mlp,
    grouped_mlp_reference,
    launch,
    moe,
    moe_mlp,
    ops,
    routing,
    sort_by_expert,
)
from moelstrom.kernels.grouped_mlp.plan import plan
from moelstrom.kernels.grouped_mlp.reference import sort_by_expert_torch
from moelstrom.kernels.permute import plain
from moelstrom.kernels.targets import find

TILE = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "GROUP_M": 2, "SUBTILES": 2}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


@pytest.fixture(params=["sm90", "gfx942"], ids=["descriptors", "pointers"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small tiles on few compute units, so that every program walks several tiles."""
    base = find(request.param)
    # Two units on each of an AMD GPU's dies: the renumbering over dies is at work too.
    target = replace(base, compute_units=8, xcds=4 if base.xcds > 1 else 1)
    monkeypatch.setattr(launch, "target_of", lambda x: target)

    @functools.wraps(configs.config)
    def small(*args: Any) -> dict[str, Any]:
        return configs.config(*args) | TILE

    monkeypatch.setattr(launch, "config", small)
    return request.param


def _inputs(
    counts: list[int], hidden: int, width: int, dtype: torch.dtype, seed: int = 0
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """(x, gate_up, down), offsets, and the gradient of y."""
    g = torch.Generator().manual_seed(seed)
    shapes = [
        (sum(counts), hidden),
        (len(counts), 2 * width, hidden),
        (len(counts), hidden, width),
        (sum(counts), hidden),
    ]
    scales = [1, hidden**-0.5, width**-0.5, 1]
    tensors = [
        (torch.randn(s, generator=g) * k).to(dtype) for s, k in zip(shapes, scales, strict=True)
    ]
    offsets = torch.tensor(counts).cumsum(0).to(torch.int32)
    return [t.requires_grad_() for t in tensors[:3]], offsets, tensors[3]


def _assert_like_reference(
    counts: list[int], hidden: int, width: int, dtype: torch.dtype, seed: int = 0
) -> None:
    tensors, offsets, dy = _inputs(counts, hidden, width, dtype, seed)
    x, gate_up, down = tensors
    y = grouped_mlp(x, gate_up, down, offsets)
    y.backward(dy)
    exact = [t.detach().float().requires_grad_() for t in tensors]
    z = grouped_mlp_reference(exact[0], exact[1], exact[2], offsets)
    z.backward(dy.float())
    for name, got, want in zip(
        ("y", "dx", "d(gate_up)", "d(down)"),
        (y, *(t.grad for t in tensors)),
        (z, *(t.grad for t in exact)),
        strict=True,
    ):
        assert got is not None and want is not None and got.dtype == dtype
        scale = want.abs().max() if want.numel() else 0
        torch.testing.assert_close(
            got.float(), want, rtol=0, atol=float(TOLERANCE[dtype] * scale + 1e-9), msg=name
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("counts", "hidden", "width"),
    [
        ([17, 0, 5, 40], 32, 64),
        ([17, 0, 5, 40], 40, 24),
        ([0, 0, 3, 9, 0], 37, 21),
        ([0, 75, 0], 48, 32),
        ([1], 16, 8),
        ([0, 0], 16, 8),
        ([16, 32, 48], 128, 96),
    ],
)
def test_all_gradients(
    form: str, counts: list[int], hidden: int, width: int, dtype: torch.dtype
) -> None:
    _assert_like_reference(counts, hidden, width, dtype)


def test_512_experts(form: str) -> None:
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(512, dtype=torch.int64)
    counts.scatter_add_(0, torch.randint(0, 512, (40,), generator=g), torch.ones(40).long())
    _assert_like_reference(counts.tolist(), 16, 16, torch.float32)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 50), st.integers(1, 40))
def test_random_routes(form: str, counts: list[int], hidden: int, width: int) -> None:
    _assert_like_reference(counts, hidden, width, torch.float32, seed=hidden)


@pytest.mark.parametrize("form", ["gfx942"], indirect=True)
def test_adds_to_sums(form: str) -> None:
    # By pointers only: the interpreter has no descriptor addition.
    tensors, offsets, dy = _inputs([17, 0, 5, 40], 40, 24, torch.float32)
    grouped_mlp(tensors[0], tensors[1], tensors[2], offsets).backward(dy)
    x, gate_up, down = (t.detach().clone().requires_grad_() for t in tensors)
    sums = torch.ones_like(gate_up), torch.ones_like(down)
    # Both forward passes before the first backward pass, as micro-batches of a pipeline have.
    passes = [grouped_mlp(x, gate_up, down, offsets, sums) for _ in range(2)]
    for y in passes:
        y.backward(dy)
    assert gate_up.grad is None and down.grad is None and tensors[0].grad is not None
    torch.testing.assert_close(x.grad, 2 * tensors[0].grad)
    for total, t in zip(sums, tensors[1:], strict=True):
        assert t.grad is not None
        torch.testing.assert_close(total.detach(), 2 * t.grad + 1)


def test_operators(form: str) -> None:
    tensors, offsets, dy = _inputs([5, 0, 20], 16, 24, torch.float32)
    torch.library.opcheck(ops.forward, (*tensors, offsets, True))
    detached = [t.detach() for t in tensors]
    hidden = ops.forward(*detached, offsets, True)[1]
    torch.library.opcheck(ops.backward, (dy, *detached, offsets, hidden))
    if form == "gfx942":
        sums = [torch.zeros_like(t) for t in detached[1:]]
        torch.library.opcheck(ops.accumulate, (dy, *detached, offsets, hidden, *sums))


def _layer(
    ids: torch.Tensor, experts: int, hidden: int, width: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...], torch.Tensor]:
    """(x, weights, gate_up, down), the routing of `ids` [T, k], and the gradient of y; some weights
    are zero and one is negative."""
    tokens = len(ids)
    (x, gate_up, down), _, dy = _inputs([tokens] + [0] * (experts - 1), hidden, width, dtype)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1))
    weights[::3, -1] = 0
    weights[-1:, 0] *= -1
    routed = sort_by_expert_torch(ids, experts)
    return [x, weights.requires_grad_(), gate_up, down], routed, dy


def _layer_reference(
    tensors: list[torch.Tensor], routed: tuple[torch.Tensor, ...]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """fp32 leaves of the tensors, and y of them by a loop over experts."""
    x, weights, gate_up, down = leaves = [t.detach().float().requires_grad_() for t in tensors]
    order, inverse, offsets = routed
    rows = grouped_mlp_reference(x[order // weights.shape[1]], gate_up, down, offsets)
    return leaves, plain.combine_rows(rows, order, inverse, weights)


def _assert_layer(
    ids: torch.Tensor, experts: int, hidden: int, width: int, dtype: torch.dtype
) -> None:
    tensors, routed, dy = _layer(ids, experts, hidden, width, dtype)
    y = moe_mlp(*tensors, *routed)
    y.backward(dy)
    leaves, z = _layer_reference(tensors, routed)
    z.backward(dy.float())
    for name, got, want in zip(
        ("y", "dx", "d(weights)", "d(gate_up)", "d(down)"),
        (y, *(t.grad for t in tensors)),
        (z, *(t.grad for t in leaves)),
        strict=True,
    ):
        assert got is not None and want is not None
        assert got.dtype == (torch.float32 if name == "d(weights)" else dtype)
        scale = want.abs().max().item() if want.numel() else 0.0
        torch.testing.assert_close(
            got.float(), want, rtol=0, atol=TOLERANCE[dtype] * scale + 1e-9, msg=name
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "copies", "experts", "hidden", "width"),
    [
        (50, 3, 4, 32, 64),
        (37, 1, 5, 40, 24),
        (20, 3, 6, 37, 21),
        (1, 2, 3, 16, 8),
        (0, 2, 3, 16, 8),
    ],
)
def test_whole_layer(
    form: str, tokens: int, copies: int, experts: int, hidden: int, width: int, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(tokens)
    # The last expert stays empty.
    ids = torch.randint(experts - 1, (tokens, copies), generator=g)
    _assert_layer(ids, experts, hidden, width, dtype)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 50),
    st.integers(1, 40),
)
def test_random_layers(form: str, experts: list[int], copies: int, hidden: int, width: int) -> None:
    ids = torch.tensor(experts).repeat_interleave(copies).roll(1).view(-1, copies)
    _assert_layer(ids, 6, hidden, width, torch.float32)


def test_layer_keeps_hidden_alone(form: str) -> None:
    tensors, routed, _ = _layer(torch.tensor([[0, 2], [2, 1], [0, 1]]), 3, 16, 24, torch.float32)
    kept: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = moe_mlp(*tensors, *routed)
    given = [tuple(t.shape) for t in (*tensors, *routed)]
    assert sorted(tuple(t.shape) for t in kept) == sorted([*given, (6, 48)])
    with torch.no_grad():
        assert torch.equal(moe_mlp(*tensors, *routed), y)
    assert moe.forward(*[t.detach() for t in tensors], *routed, False)[1].shape == (0, 48)


def test_layer_operators(form: str) -> None:
    tensors, routed, dy = _layer(torch.tensor([[0, 2], [2, 1], [0, 2]]), 3, 16, 24, torch.float32)
    torch.library.opcheck(moe.forward, (*tensors, *routed, True))
    detached = [t.detach() for t in tensors]
    hidden = moe.forward(*detached, *routed, True)[1]
    torch.library.opcheck(moe.backward, (dy, *detached, *routed, hidden))


def test_inference_keeps_nothing(form: str) -> None:
    (x, gate_up, down), offsets, _ = _inputs([5, 0, 20], 16, 24, torch.float32)
    y, hidden = ops.forward(x.detach(), gate_up.detach(), down.detach(), offsets, False)
    assert hidden.shape == (0, 48)
    torch.testing.assert_close(y, grouped_mlp(x, gate_up, down, offsets), rtol=0, atol=0)


def test_compiles_without_a_break(form: str) -> None:
    tensors, offsets, dy = _inputs([5, 0, 20], 16, 24, torch.float32)

    def loss(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return (grouped_mlp(2 * x, gate_up, down, offsets) * dy).sum()

    plain = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_layer_compiles_without_a_break(form: str) -> None:
    tensors, routed, dy = _layer(torch.tensor([[0, 2], [2, 1], [0, 2]]), 3, 16, 24, torch.float32)

    def loss(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return (moe_mlp(2 * x, *others, *routed) * dy).sum()

    eager = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), eager, strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=9), st.sampled_from([16, 32]))
def test_plan(counts: list[int], block: int) -> None:
    offsets = torch.tensor(counts).cumsum(0).to(torch.int32)
    rows = sum(counts)
    found = plan(offsets, rows, block)
    expected, start = [], 0
    for expert, size in enumerate(counts):
        for row in range(0, size, block):
            expected.append([expert, start + row, min(size - row, block)])
        start += size
    assert found.count.item() == len(expected) <= found.tiles.shape[0]
    assert found.tiles[: len(expected), :3].tolist() == expected
    order = sorted(range(len(counts)), key=lambda e: (-counts[e], e))
    starts = [sum(counts[:e]) for e in order]
    assert found.groups[:, :3].tolist() == [
        [e, start, counts[e]] for e, start in zip(order, starts, strict=True)
    ]


@pytest.mark.parametrize(
    ("copies", "experts"), [(0, 3), (1, 1), (1024, 8), (1025, 8), (5000, 7), (900, 512)]
)
def test_sort_by_expert(copies: int, experts: int) -> None:
    ids = torch.randint(0, experts, (copies,), generator=torch.Generator().manual_seed(copies))
    for got, want in zip(
        sort_by_expert(ids, experts), sort_by_expert_torch(ids, experts), strict=True
    ):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


def test_sort_operator() -> None:
    torch.library.opcheck(routing.sort, (torch.tensor([3, 0, 3, 1]), 4))
