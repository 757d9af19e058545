"""Layouts and tensors that cannot be are refused with the field and the fix."""

from typing import Any

import pytest
import torch
from drawn_layouts import tensors_of

from moelstrom import UserError
from moelstrom.moe.checkpoint.layouts.holdings import holdings, needs
from moelstrom.moe.checkpoint.layouts.layout import StateLayout, make_target
from moelstrom.moe.config import ModelConfig, MoEConfig, OptimizerConfig
from moelstrom.moe.state.source import TensorInfo

MODEL = ModelConfig(
    vocab_size=8,
    hidden_size=8,
    num_layers=2,
    num_heads=12,
    num_kv_heads=6,
    head_dim=2,
    pattern=("attention/moe", "attention/dense"),
    ffn_size=36,
    moe=MoEConfig(num_experts=6, expert_size=48),
)
ADAMW = OptimizerConfig()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"dp": 3, "ep": 2}, r"layout: ep is 2, .*dp 3.* multiple of ep"),
        ({"zero": 2}, r"layout: zero is 2, but engine native .*zero to 1, or engine to deepspeed"),
        ({"engine": "megatron", "zero": 3}, r"layout: zero is 3, but engine megatron"),
        ({"engine": "deepspeed", "zero": 2, "pp": 2}, r"layout: zero is 2 with pp 2: .*pp to 1"),
        ({"zero": 4}, r"layout: zero: .*3, not 4"),
        ({"engine": "fsdp"}, r"layout: engine 'fsdp' is none of the engines: .*megatron"),
        ({"tp": 0}, r"layout: tp: .*, not 0"),
        ({"sp": 2}, r"layout: sp: Extra inputs"),
    ],
)
def test_refuses_fields(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make_target(**fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tp": 5}, r"tp is 5, which does not divide model\.num_heads 12"),
        ({"tp": 4}, r"tp is 4 with model\.num_kv_heads 6: one must divide the other"),
        ({"pp": 3}, r"pp is 3, above model\.num_layers 2: .*pp to 2 or less"),
        ({"dp": 4, "ep": 4}, r"ep is 4, which does not divide model\.moe\.num_experts 6"),
        ({"engine": "deepspeed", "dp": 2, "ep": 2, "zero": 3}, r"ZeRO 3 cannot partition experts"),
    ],
)
def test_refuses_what_the_model_does_not_allow(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        holdings(tensors_of(MODEL, ADAMW), MODEL, make_target(**fields), ADAMW)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"ffn_size": 35}, r"tp is 6, .*model\.ffn_size 35"),
        ({"moe": MoEConfig(expert_size=40)}, r"tp is 6, .*model\.moe\.expert_size 40"),
        ({"moe": MoEConfig(shared_expert_size=8, expert_size=48)}, r"tp is 6, .*shared_expert_si"),
        ({"vocab_size": 0}, r"model\.vocab_size is 0"),
    ],
)
def test_refuses_models(changed: dict[str, Any], text: str) -> None:
    model = MODEL.model_copy(update=changed)
    with pytest.raises(UserError, match=text):
        holdings({}, model, StateLayout(tp=6), ADAMW)


def test_refuses_muon_where_zero_cuts_its_matrices() -> None:
    muon = OptimizerConfig(name="muon")
    with pytest.raises(UserError, match=r"optimizer\.name muon"):
        holdings(tensors_of(MODEL, muon), MODEL, StateLayout(engine="deepspeed", zero=1), muon)


def test_refuses_tensors_of_another_model() -> None:
    tensors = tensors_of(MODEL, ADAMW)
    name, moment = "model/layers.1.mixer.q", "adamw/exp_avg/layers.1.mixer.q"
    wrong = {
        r"it has 'model/extra', the config's": tensors | {"model/extra": tensors[name]},
        r"it has 'rng/x/cpu', the config's": tensors | {"rng/x/cpu": tensors[name]},
        r"'model/layers.1.mixer.q' is \[4\], in the config's model it is \[24, 8\]": tensors
        | {name: TensorInfo(torch.float32, (4,))},
        r"it has no 'model/layers.1.mixer.q'": {k: v for k, v in tensors.items() if k != name},
        r"it has no 'adamw/exp_avg/lay": {k: v for k, v in tensors.items() if k != moment},
    }
    for text, held in wrong.items():
        with pytest.raises(UserError, match=f"not those of the config: {text}"):
            needs(held, MODEL, StateLayout(), ADAMW, 0)


def test_weights_alone_are_enough() -> None:
    weights = {k: v for k, v in tensors_of(MODEL, ADAMW).items() if k.startswith("model/")}
    (slabs,) = holdings(weights, MODEL, StateLayout(), ADAMW)
    assert {slab.name for slab in slabs} == set(weights)


def test_random_state_of_ranks_that_the_layout_lacks_is_kept() -> None:
    maps = tensors_of(MODEL, ADAMW), MODEL, StateLayout(dp=2), ADAMW
    written = [[s.name for s in rank if s.name.startswith("rng/")] for rank in holdings(*maps)]
    assert written == [["rng/0/cpu", "rng/2/cpu"], ["rng/1/cpu"]]
    read = [s.name for s in needs(*maps, 1) if s.name.startswith("rng/")]
    assert read == ["rng/1/cpu"]
