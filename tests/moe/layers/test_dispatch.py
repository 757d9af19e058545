"""The path of tokens to their experts and back is a loop over the experts, on one rank and two."""

import torch
import torch.distributed as dist
from ranks import run_ranks

from moelstrom.moe.config import LayoutConfig
from moelstrom.moe.grid import Grid
from moelstrom.moe.layers.dispatch import combine, dispatch, plan

TOKENS, WIDTH, EXPERTS, TOP_K = 9, 8, 4, 2


def problem(rank: int, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A rank's rows [T, D], experts [T, k] and weights [T, k]: spread, skewed, or with experts that
    nobody asks for."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(TOKENS, WIDTH, generator=generator)
    experts = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in x])
    if kind == "one":
        experts[:] = torch.tensor([3, 1])
    elif kind == "empty rank":
        experts = experts % 2
    return x, experts, torch.rand(TOKENS, TOP_K, generator=generator)


def scaled(rows: torch.Tensor, ends: torch.Tensor, first: int) -> torch.Tensor:
    """Expert e multiplies its rows by e + 1."""
    counts = ends.diff(prepend=ends.new_zeros(1))
    factors = torch.arange(first + 1, first + 1 + len(ends)).repeat_interleave(counts)
    return rows * factors.unsqueeze(1)


def there_and_back(ep: int) -> list[tuple[float, float]]:
    """Largest error of outputs and of input gradients for each kind of load."""
    rank, grid = dist.get_rank(), Grid(LayoutConfig(dp=dist.get_world_size(), ep=ep))
    found = []
    for kind in ("spread", "one", "empty rank"):
        x, experts, weights = problem(rank, kind)
        x.requires_grad_()
        counts = torch.bincount(experts.flatten(), minlength=EXPERTS)
        path = plan(experts, counts, grid.ep)
        assert path.exchange is not None
        rows = dispatch(x, path, path.exchange, TOP_K)
        rows = scaled(rows, path.offsets, grid.ep.rank * EXPERTS // ep)
        y = combine(rows, path, path.exchange, weights)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        factor = ((experts + 1) * weights).sum(1, keepdim=True)
        wanted = x.detach() * factor
        errors = (y - wanted).abs().max(), (gradient - 2 * wanted * factor).abs().max()
        found.append(tuple(error.item() for error in errors))
    return found  # type: ignore[return-value]


def test_rows_come_back_to_their_tokens() -> None:
    for errors in run_ranks(2, there_and_back, 2):
        assert all(y < 1e-5 and gradient < 1e-4 for y, gradient in errors)


def test_one_rank_sorts_and_exchanges_nothing(grid: Grid) -> None:
    _, experts, _ = problem(0, "spread")
    counts = torch.bincount(experts.flatten(), minlength=EXPERTS)
    path = plan(experts, counts, grid.ep)
    assert path.exchange is None
    by_expert = experts.flatten()[path.order]
    assert torch.equal(path.order[path.inverse], torch.arange(TOKENS * TOP_K))
    assert torch.equal(by_expert, by_expert.sort(stable=True).values)
    assert torch.equal(path.offsets.long(), counts.cumsum(0))
