"""Canonical names: any cut of a parameter names every element once, and reads back the same."""

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.moe.spec import Normal, Spec
from moelstrom.moe.state.names import Local, fill, has_optimizer, to_shards
from moelstrom.moe.state.source import TensorInfo


class Memory:
    """Canonical tensors, put together from shards."""

    folder, step = Path(), 0
    meta: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self.values: dict[str, torch.Tensor] = {}

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        data = self.values[name]
        return data[offset : len(data) if numel is None else offset + numel]


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    experts=st.integers(0, 3),
    first=st.integers(0, 5),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_shards_of_any_cut_read_back(
    shape: list[int], experts: int, first: int, cuts: list[int]
) -> None:
    spec = Spec(tuple(shape), Normal(1.0), experts=experts)
    stack = (experts,) if experts else ()
    local = Local("layers.1.ffn.experts.up", (*stack, *shape), spec, first)
    whole = torch.arange(float(local.numel))
    ends = sorted({0, local.numel, *(c % (local.numel + 1) for c in cuts)})
    memory = Memory()
    for t in local.logicals():
        memory.values[f"model/{t.name}"] = torch.full((t.numel,), -1.0)
    for a, b in pairwise(ends):
        for s in to_shards("model", local.logicals(), a, whole[a:b]):
            assert s.shape == tuple(shape)
            memory.values[s.name][s.offset : s.offset + s.data.numel()] = s.data
    assert torch.equal(torch.cat(list(memory.values.values())), whole)
    expected = [f"model/layers.1.ffn.experts.{first + i}.up" for i in range(experts)]
    assert list(memory.values) == (expected or ["model/layers.1.ffn.experts.up"])
    back = torch.zeros_like(whole)
    for a, b in pairwise(ends):
        fill(memory, "model", local.logicals(), a, back[a:b])
    assert torch.equal(back, whole)


def test_matrices_below_one_another_are_apart() -> None:
    spec = Spec((6, 4), Normal(1.0), "matrix", matrices=3, experts=2)
    assert Local("w", (2, 6, 4), spec).matrix_shape == (2, 4)


def test_weights_alone_have_no_optimizer() -> None:
    memory, info = Memory(), TensorInfo(torch.float32, (1,))
    memory.tensors = {"model/w": info, "rng/0/cpu": info}
    assert not has_optimizer(memory)
    memory.tensors["muon/momentum/w"] = info
    assert has_optimizer(memory)
