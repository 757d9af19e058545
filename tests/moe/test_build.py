"""First values: the same for every layout, drawn for each logical tensor by its name."""

import torch
import torch.distributed as dist
from hf_models import alone
from ranks import run_ranks

from moelstrom.moe.build import build_model
from moelstrom.moe.config import LayoutConfig, ModelConfig, MoEConfig
from moelstrom.moe.grid import Grid

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    pattern=("attention/dense", "attention/moe"),
    ffn_size=48,
    qk_norm=True,
    init_std=0.5,
    moe=MoEConfig(num_experts=4, expert_size=16, shared_expert_size=8),
)


def values(ep: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Every logical tensor that this rank holds."""
    model = build_model(CONFIG, Grid(LayoutConfig(dp=dist.get_world_size(), ep=ep)), seed)
    return {
        t.name: p.detach().reshape(-1)[t.start : t.start + t.numel].clone()
        for local, p in model.parameters_here()
        for t in local.logicals()
    }


def test_seed_and_name_decide_and_ranks_do_not() -> None:
    with alone():
        one, again, other = values(1), values(1), values(1, seed=2)
    first, second = run_ranks(2, values, 2)
    assert one.keys() == first.keys() | second.keys()
    for part in (again, first, second):
        assert all(torch.equal(one[name], value) for name, value in part.items())
    experts = {name for name in one if ".experts." in name}
    assert experts - first.keys() == experts & second.keys() - first.keys() != set()
    drawn = [name for name, value in one.items() if value.std() > 0]
    assert all(not torch.equal(one[name], other[name]) for name in drawn)
    assert all((one[name] == 1).all() for name in one.keys() - set(drawn))


def test_residual_outputs_are_smaller_with_depth() -> None:
    with alone():
        found = values(1)
    for name, value in found.items():
        leaf = name.rpartition(".")[2]
        if leaf in ("o", "down", "q", "gate_up", "embedding", "head") or "router" in name:
            std = 0.25 if leaf in ("o", "down") else 0.5
            assert abs(value.std().item() - std) < 6 * std / (2 * value.numel()) ** 0.5, name
