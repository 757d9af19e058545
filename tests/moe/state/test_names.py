"""Ranges of a local parameter under canonical names, and back."""

from pathlib import Path

import torch

from moelstrom.moe.spec import Normal, Spec
from moelstrom.moe.state.names import Local, fill, has_optimizer, overlaps, to_shards
from moelstrom.moe.state.source import TensorInfo

EXPERTS = Local(
    "layers.1.ffn.experts.down", (3, 2, 4), Spec((2, 4), Normal(0.02), experts=6), first_expert=2
)
PLAIN = Local("head", (5, 3), Spec((5, 3), Normal(0.02)))


class Held:
    """Canonical tensors in memory."""

    folder = Path()
    step = 0

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._held, self.meta = tensors, {}
        self.tensors = {n: TensorInfo(t.dtype, tuple(t.shape)) for n, t in tensors.items()}

    def read(self, name: str, offset: int = 0, numel: int | None = None) -> torch.Tensor:
        assert numel is not None
        return self._held[name].flatten()[offset : offset + numel]


def test_experts_keep_their_global_ids() -> None:
    found = [(t.name, t.shape, t.start) for t in EXPERTS.logicals()]
    names = [f"layers.1.ffn.experts.{i}.down" for i in (2, 3, 4)]
    assert found == [(name, (2, 4), 8 * i) for i, name in enumerate(names)]
    assert [(t.name, t.shape, t.start) for t in PLAIN.logicals()] == [("head", (5, 3), 0)]
    assert EXPERTS.expert and not PLAIN.expert and (EXPERTS.numel, PLAIN.numel) == (24, 15)


def test_every_range_is_named_and_filled_element_by_element() -> None:
    """Element i of the local parameter holds i: a shard says where each of them belongs."""
    for local in (EXPERTS, PLAIN):
        logicals = local.logicals()
        where = {t.start + i: (f"model/{t.name}", i) for t in logicals for i in range(t.numel)}
        whole = {
            f"model/{t.name}": torch.arange(t.start, t.start + t.numel).view(t.shape)
            for t in logicals
        }
        for start in range(local.numel + 1):
            for end in range(start, local.numel + 1):
                shards = to_shards("model", logicals, start, torch.arange(start, end))
                found = {
                    int(value): (s.name, s.offset + i)
                    for s in shards
                    for i, value in enumerate(s.data)
                }
                assert found == {i: where[i] for i in range(start, end)}
                assert all(s.steady and s.shape == tuple(whole[s.name].shape) for s in shards)
                back = torch.full((end - start,), -1)
                fill(Held(whole), "model", logicals, start, back)
                assert back.tolist() == list(range(start, end))


def test_an_empty_range_meets_nothing() -> None:
    assert list(overlaps(EXPERTS.logicals(), 8, 0)) == []
    assert [t.name[-6:] for t, *_ in overlaps(EXPERTS.logicals(), 7, 2)] == ["2.down", "3.down"]


def test_weights_and_random_state_are_no_optimizer() -> None:
    values = torch.zeros(1)
    assert not has_optimizer(Held({"model/w": values, "rng/0/cpu": values}))
    assert has_optimizer(Held({"model/w": values, "adamw/exp_avg/w": values}))
