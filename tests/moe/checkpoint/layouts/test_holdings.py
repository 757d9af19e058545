"""Any layout's maps hold every element once, and chains of layouts lose no bit."""

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
from drawn_layouts import small_models, targets, tensors_of
from drawn_models import models
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.moe.checkpoint.layouts.holdings import holdings, needs
from moelstrom.moe.config import ModelConfig, OptimizerConfig
from moelstrom.moe.state.source import Slab, TensorInfo

State = dict[str, np.ndarray]
optimizers = st.sampled_from((OptimizerConfig(name="adamw"), OptimizerConfig(name="muon")))


def indices(slab: Slab) -> np.ndarray:
    rows = slab.offset + slab.stride * np.arange(slab.rows)
    return (rows[:, None] + np.arange(slab.run)).reshape(-1)


def counted(slabs: Iterable[Slab], tensors: dict[str, TensorInfo]) -> State:
    """How often the slabs hold each element."""
    counts = {name: np.zeros(math.prod(info.shape), int) for name, info in tensors.items()}
    for slab in slabs:
        assert slab.numel > 0 and slab.end <= counts[slab.name].size
        np.add.at(counts[slab.name], indices(slab), 1)
    return counts


def scatter(state: State, slabs: list[Slab]) -> list[tuple[Slab, np.ndarray]]:
    return [(slab, state[slab.name][indices(slab)]) for slab in slabs]


def gather(ranks: list[list[tuple[Slab, np.ndarray]]], like: State) -> State:
    state = {name: np.zeros_like(data) for name, data in like.items()}
    for parts in ranks:
        for slab, data in parts:
            state[slab.name][indices(slab)] = data
    return state


@settings(deadline=None, max_examples=120)
@given(st.data(), small_models(), optimizers)
def test_every_element_is_written_once(
    data: st.DataObject, model: ModelConfig, optimizer: OptimizerConfig
) -> None:
    target, tensors = data.draw(targets(model, optimizer)), tensors_of(model, optimizer)
    ranks = holdings(tensors, model, target, optimizer)
    assert len(ranks) == target.world_size
    counts = counted((slab for rank in ranks for slab in rank), tensors)
    assert all((count == 1).all() for count in counts.values())


@settings(deadline=None, max_examples=60)
@given(st.data(), small_models(), optimizers)
def test_ranks_read_what_they_write_and_copies(
    data: st.DataObject, model: ModelConfig, optimizer: OptimizerConfig
) -> None:
    """A rank needs all that it writes, nothing twice, and with its replicas all that their
    stage and tensor-parallel rank hold without ZeRO; with ZeRO no two keep the same."""
    target, tensors = data.draw(targets(model, optimizer)), tensors_of(model, optimizer)
    written = holdings(tensors, model, target, optimizer)
    rank = data.draw(st.integers(0, target.world_size - 1))
    read = needs(tensors, model, target, optimizer, rank)
    assert {s for s in written[rank] if not s.name.startswith("rng/")} <= set(read)
    assert max(count.max() for count in counted(read, tensors).values()) <= 1
    place = target.place(rank)
    assert target.rank(place) == rank
    whole = target.model_copy(update={"zero": 0})
    everyone = [
        slab
        for other in range(target.world_size)
        if (p := target.place(other)).stage == place.stage and p.tensor == place.tensor
        for slab in needs(tensors, model, target, optimizer, other)
    ]
    held = counted(needs(tensors, model, whole, optimizer, rank), tensors)
    found = counted(everyone, tensors)
    assert all((found[name][held[name] > 0] > 0).all() for name in tensors)
    for name, count in found.items():
        sharded = target.zero and not name.endswith("bias") and not name.startswith("rng/")
        assert not sharded or count.max() <= 1, name


@settings(deadline=None, max_examples=40)
@given(st.data(), small_models(), optimizers)
def test_chains_of_layouts_return_the_same_state(
    data: st.DataObject, model: ModelConfig, optimizer: OptimizerConfig
) -> None:
    tensors = tensors_of(model, optimizer)
    draw = np.random.default_rng(0)
    state = {
        name: draw.integers(1, 2**32, math.prod(info.shape), dtype=np.uint32)
        for name, info in tensors.items()
    }
    current = state
    for target in data.draw(st.lists(targets(model, optimizer), min_size=2, max_size=4)):
        ranks = holdings(tensors, model, target, optimizer)
        current = gather([scatter(current, slabs) for slabs in ranks], current)
    assert all((current[name] == state[name]).all() for name in state)


@settings(deadline=None, max_examples=25)
@given(st.data(), models(), optimizers)
def test_larger_models_need_no_data(
    data: st.DataObject, model: ModelConfig, optimizer: OptimizerConfig
) -> None:
    """Several buckets of the native engine, and millions of elements."""
    target, tensors = data.draw(targets(model, optimizer)), tensors_of(model, optimizer)
    sizes: Counter[str] = Counter()
    for rank in holdings(tensors, model, target, optimizer):
        for slab in rank:
            sizes[slab.name] += slab.numel
    assert sizes == {name: math.prod(info.shape) for name, info in tensors.items()}
