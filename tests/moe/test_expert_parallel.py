"""Expert parallelism changes where experts live, not one value."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from moelstrom.moe.batch import IGNORE, Batch
from moelstrom.moe.build import build_model
from moelstrom.moe.config import LayoutConfig, ModelConfig, MoEConfig
from moelstrom.moe.engines.metrics import Tally, count_totals
from moelstrom.moe.grid import Grid
from moelstrom.moe.state.names import to_shards

VOCAB, LENGTH, ROWS = 48, 12, 4


def config(**moe: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_size=24,
        pattern=("attention/dense", "attention/moe"),
        qk_norm=True,
        rope_fraction=0.5,
        moe=MoEConfig(**{"num_experts": 4, "top_k": 2, "expert_size": 8, **moe}),
    )


def global_batch() -> Batch:
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=g)
    targets = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=g)
    targets[0, 3] = targets[2, :5] = IGNORE
    documents = torch.arange(LENGTH).div(5, rounding_mode="floor").int().expand(ROWS, -1)
    return Batch(tokens, targets, documents.contiguous())


def gradients(model_config: ModelConfig, ep: int, bias: list[float] | None) -> dict:
    """Global loss, counts and every canonical gradient, from this layout's ranks."""
    world, rank = dist.get_world_size(), dist.get_rank()
    grid = Grid(LayoutConfig(dp=world, ep=ep))
    model = build_model(model_config, grid, seed=7)
    if bias is not None:
        ffn: Any = model.layers[1].ffn
        ffn.router.bias.copy_(torch.tensor(bias))
    share = ROWS // world
    whole = global_batch()
    rows = slice(rank * share, (rank + 1) * share)
    batch = Batch(whole.tokens[rows], whole.targets[rows], whole.documents[rows])
    totals = count_totals([batch], grid, torch.device("cpu"))
    out = model(batch)
    totals.loss(out).backward()
    tally = Tally(totals)
    tally.add(out)
    tally.reduce(grid)
    found = tally.metrics(0.0, 0.0, True)
    counts = torch.stack(found.expert_load).double()
    result = {
        "loss": torch.tensor(found.loss),
        "aux": torch.tensor(found.aux_loss),
        "counts": counts,
    }
    for local, p in model.parameters_here():
        team = grid.edp if local.expert else grid.replicas
        grad = torch.zeros_like(p) if p.grad is None else p.grad.contiguous()
        dist.all_reduce(grad, group=team.group)
        for shard in to_shards("g", local.logicals(), 0, grad.flatten()):
            result[shard.name] = shard.data.clone()
    return result


CASES: dict[str, tuple[dict[str, Any], list[float] | None]] = {
    "balanced": ({}, None),
    "sigmoid, shared": ({"score": "sigmoid", "shared_expert_size": 8}, None),
    "batch scope": ({"balance_scope": "batch"}, None),
    "empty experts": ({"top_k": 1}, [0.0, 9.0, 0.0, 9.0]),
    "one takes all": ({"top_k": 1}, [0.0, 0.0, 9.0, 0.0]),
    "raw weights": ({"normalize_top_k": False, "top_k": 3}, None),
}


def all_gradients(ep: int) -> dict[str, dict]:
    return {case: gradients(config(**moe), ep, bias) for case, (moe, bias) in CASES.items()}


@pytest.fixture(scope="module")
def layouts() -> tuple[list, list, list]:
    """Every case on one rank, on two with expert parallelism, on two without."""
    return (
        run_ranks(1, all_gradients, 1),
        run_ranks(2, all_gradients, 2),
        run_ranks(2, all_gradients, 1),
    )


@pytest.mark.parametrize("case", CASES)
def test_ep2_equals_ep1(layouts: tuple[list, list, list], case: str) -> None:
    moe, bias = CASES[case]
    one, split, plain = ([rank[case] for rank in ranks] for ranks in layouts)
    reference = one[0]
    assert reference["counts"].sum() == ROWS * LENGTH * config(**moe).moe.top_k
    assert (bias is not None) == bool((reference["counts"] == 0).any())
    merged = {**split[0], **split[1]}
    assert set(merged) == set(reference) == set(plain[0])
    for name, value in reference.items():
        for got in (merged[name], plain[0][name]):
            torch.testing.assert_close(got, value, rtol=2e-5, atol=2e-6, msg=name)
