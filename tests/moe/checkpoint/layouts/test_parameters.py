"""What tensor, pipeline and expert parallel ranks hold, against slices of whole arrays."""

import numpy as np
import pytest
from drawn_layouts import small_models, targets
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.moe.checkpoint.layouts.layout import StateLayout
from moelstrom.moe.checkpoint.layouts.parameters import (
    LocalParameter,
    Skeleton,
    dense_parameters,
    expert_parameters,
)
from moelstrom.moe.config import ModelConfig, MoEConfig, OptimizerConfig

MODEL = ModelConfig(
    vocab_size=10,
    hidden_size=8,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=2,
    pattern=("attention/moe", "attention/dense"),
    ffn_size=12,
    qk_norm=True,
    moe=MoEConfig(num_experts=4, expert_size=8, shared_expert_size=16),
)


def arrays(config: ModelConfig) -> dict[str, np.ndarray]:
    """Every logical tensor, all elements different."""
    found, seen = {}, 0
    for p in Skeleton(config).parameters:
        for t in p.logicals():
            found[t.name] = np.arange(seen, seen + t.numel).reshape(t.shape)
            seen += t.numel
    return found


def values(p: LocalParameter, whole: dict[str, np.ndarray]) -> np.ndarray:
    """The local parameter, put together from its slabs."""
    parts = [
        whole[s.name].reshape(-1)[s.offset + row * s.stride :][: s.run]
        for s in p.slabs
        for row in range(s.rows)
    ]
    return np.concatenate(parts).reshape(p.local.shape)


def expected(name: str, array: np.ndarray, config: ModelConfig, tp: int, rank: int) -> np.ndarray:
    """What Megatron's column, row and vocabulary parallel layers hold of one tensor."""
    leaf = name.rpartition(".")[2]
    if leaf in ("k", "v"):
        heads = array.reshape(config.num_kv_heads, config.head_dim, -1)
        copied = np.repeat(heads, max(1, tp // config.num_kv_heads), axis=0)
        return np.split(copied, tp)[rank].reshape(-1, array.shape[1])
    if leaf == "gate_up":
        gate, up = (np.split(half, tp)[rank] for half in np.split(array, 2))
        return np.concatenate([gate, up])
    if leaf == "q":
        return np.split(array, tp)[rank]
    if leaf in ("o", "down"):
        return np.split(array, tp, axis=1)[rank]
    if leaf in ("embedding", "head"):
        padded = -(-len(array) // tp)
        return array[rank * padded : (rank + 1) * padded]
    return array


def names_in(p: LocalParameter, count: int, ep_rank: int) -> list[str]:
    """The logical tensors of a parameter; `count` experts are stacked on each rank."""
    if ".experts." not in p.local.name:
        return [p.local.name]
    module, _, leaf = p.local.name.rpartition(".")
    return [f"{module}.{ep_rank * count + i}.{leaf}" for i in range(count)]


@settings(deadline=None, max_examples=60)
@given(st.data(), small_models())
def test_every_rank_holds_its_slices(data: st.DataObject, config: ModelConfig) -> None:
    target = data.draw(targets(config, OptimizerConfig()))
    place = target.place(data.draw(st.integers(0, target.world_size - 1)))
    ep_rank = place.replica % target.ep
    model, whole = Skeleton(config), arrays(config)
    held = dense_parameters(model, target, place.stage, place.tensor)
    held += expert_parameters(model, target, place.stage, place.tensor, ep_rank)
    for p in held:
        mine = [
            expected(name, whole[name], config, target.tp, place.tensor)
            for name in names_in(p, config.moe.num_experts // target.ep, ep_rank)
        ]
        assert np.array_equal(np.concatenate(mine).reshape(-1), values(p, whole).reshape(-1))


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_gate_and_up_stay_two_matrices(tp: int) -> None:
    held = dense_parameters(Skeleton(MODEL), StateLayout(tp=tp), 0, 0)
    held += expert_parameters(Skeleton(MODEL), StateLayout(tp=tp), 0, 0, 0)
    shapes = {
        p.local.name.partition(".ffn.")[2]: p.local.matrix_shape
        for p in held
        if len(p.local.shape) > 1
    }
    assert shapes["mlp.gate_up"] == (12 // tp, 8)
    assert shapes["shared.gate_up"] == (16 // tp, 8)
    assert shapes["experts.gate_up"] == (8 // tp, 8)
    assert shapes["experts.down"] == (8, 8 // tp)


def names(stage: int, **layout: int) -> list[str]:
    target = StateLayout(engine="megatron", **layout)
    return [p.local.name for p in dense_parameters(Skeleton(MODEL), target, stage, 0)]


def test_stages_hold_their_layers_and_the_ends() -> None:
    first, last = names(0, pp=2), names(1, pp=2)
    assert {name.split(".")[1] for name in first if "." in name} == {"0"}
    assert {name.split(".")[1] for name in last if name.startswith("layers")} == {"1", "2"}
    assert "embedding" in first and "head" not in first and "norm.weight" not in first
    assert "head" in last and "norm.weight" in last and "embedding" not in last


def test_both_ends_hold_a_tied_embedding_and_the_first_writes_it() -> None:
    model = Skeleton(MODEL.model_copy(update={"tie_embeddings": True}))
    for pp, held in ((1, [True]), (3, [True, None, False])):
        target = StateLayout(pp=pp)
        for stage, writes in enumerate(held):
            found = {p.local.name: p.writes for p in dense_parameters(model, target, stage, 0)}
            assert found.get("embedding") is writes


@pytest.mark.parametrize(("tp", "writers"), [(2, {0, 1}), (4, {0, 2}), (8, {0, 4})])
def test_kv_heads_are_copied_beyond_their_number(tp: int, writers: set[int]) -> None:
    target = StateLayout(tp=tp)
    ranks = [dense_parameters(Skeleton(MODEL), target, 0, rank) for rank in range(tp)]
    keys = [next(p for p in held if p.local.name == "layers.0.mixer.k") for held in ranks]
    assert {rank for rank, p in enumerate(keys) if p.writes} == writers
    for rank, p in enumerate(keys):
        head = rank * 2 // tp
        assert [(s.offset, s.run) for s in p.slabs] == [(head * 16, 16)]


def test_the_last_vocabulary_shards_may_be_short_or_empty() -> None:
    def rows(vocabulary: int) -> list[int]:
        model = Skeleton(MODEL.model_copy(update={"vocab_size": vocabulary}))
        ranks = [dense_parameters(model, StateLayout(tp=4), 0, rank) for rank in range(4)]
        found = [{p.local.name: p.local.shape[0] for p in held} for held in ranks]
        return [shapes.get("head", 0) for shapes in found]

    assert rows(10) == [3, 3, 3, 1]
    assert rows(5) == [2, 2, 1, 0]
