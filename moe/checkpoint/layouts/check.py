"""What a layout cannot be with a model, and tensors that are not the model's."""

import re
from collections.abc import Iterator, Mapping

from .... import UserError
from ...config import EngineConfig, LayoutConfig, ModelConfig, OptimizerConfig
from ...engines.deepspeed import engine as deepspeed
from ...engines.native.optimizer import STATE
from ...layers.ffns import FFNS
from ...layers.mixers import MIXERS
from ...model import Model, layer_kinds
from ...optim.rules import rule
from ...state.names import logical_tensors
from ...state.source import TensorInfo
from .layout import Target

RANDOM_STATE = re.compile(r"rng/\d{1,9}/(cpu|cuda)")


def check_layout(model: ModelConfig, target: Target, optimizer: OptimizerConfig) -> None:
    """Raise UserError where the model's sizes or the optimizer do not allow the layout."""
    _check_model(model)
    for name, number, part, size in _divided(model, target):
        if size % number:
            raise UserError(
                f"layout: {name} is {number}, which does not divide model.{part} {size}: choose "
                f"a divisor of {size}"
            )
    heads, tp = model.num_kv_heads, target.tp
    if heads % tp and tp % heads:
        raise UserError(
            f"layout: tp is {tp} with model.num_kv_heads {heads}: one must divide the other, so "
            "that ranks split the KV heads or hold copies of one"
        )
    if target.pp > model.num_layers:
        raise UserError(
            f"layout: pp is {target.pp}, above model.num_layers {model.num_layers}: every stage "
            f"needs a layer, so set pp to {model.num_layers} or less"
        )
    engine = EngineConfig(name="deepspeed" if target.engine == "deepspeed" else "native")
    inner = LayoutConfig(dp=target.replicas, ep=target.ep, zero=target.zero)
    deepspeed.check(inner, engine, optimizer)


def _check_model(model: ModelConfig) -> None:
    if model.vocab_size == 0:
        raise UserError("model.vocab_size is 0: give the size that the tokenizer has")
    for entry in model.pattern:
        mixer, _, ffn = entry.partition("/")
        if mixer not in MIXERS or ffn not in FFNS:
            raise UserError(
                f"model.pattern: {entry!r} is not mixer/ffn, with mixer one of "
                f"{', '.join(MIXERS)} and ffn one of {', '.join(FFNS)}"
            )


def _divided(model: ModelConfig, target: Target) -> Iterator[tuple[str, int, str, int]]:
    """(field of the layout, its value, field of the model, what the ranks split evenly)."""
    ffns = {ffn for _, ffn in layer_kinds(model)}
    yield "tp", target.tp, "num_heads", model.num_heads
    if "dense" in ffns:
        yield "tp", target.tp, "ffn_size", model.ffn_size
    if "moe" in ffns:
        yield "ep", target.ep, "moe.num_experts", model.moe.num_experts
        yield "tp", target.tp, "moe.expert_size", model.moe.expert_size
        yield "tp", target.tp, "moe.shared_expert_size", model.moe.shared_expert_size


def check_tensors(
    tensors: Mapping[str, TensorInfo], model: Model, optimizer: OptimizerConfig
) -> None:
    """Raise UserError unless `tensors` are the model's weights and buffers, in their shapes, with
    all of an optimizer state or none of it; generators' state may come with them."""
    expected = dict(_expected(model, optimizer))
    for name, info in tensors.items():
        if RANDOM_STATE.fullmatch(name):
            continue
        if name not in expected:
            raise _other(f"it has {name!r}, the config's model and optimizer do not")
        if tuple(info.shape) != expected[name]:
            found, wanted = list(info.shape), list(expected[name])
            raise _other(f"{name!r} is {found}, in the config's model it is {wanted}")
    kinds = {_kind(name) for name in tensors} | {"model"}
    for name in expected:
        if name not in tensors and _kind(name) in kinds:
            raise _other(f"it has no {name!r}")


def _expected(model: Model, optimizer: OptimizerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, p in model.named_parameters():
        update = rule(name, p, optimizer)
        for t in logical_tensors(name, p):
            yield f"model/{t.name}", t.shape
            for key in STATE[update]:
                yield f"{update}/{key}/{t.name}", t.shape
    for name, buffer in model.named_buffers():
        yield f"model/{name}", tuple(buffer.shape)


def _kind(name: str) -> str:
    """`model`, or one tensor of one rule's state such as `adamw/exp_avg`."""
    head, _, rest = name.partition("/")
    return head if head == "model" else f"{head}/{rest.partition('/')[0]}"


def _other(what: str) -> UserError:
    return UserError(f"the checkpoint's tensors are not those of the config: {what}: {_FIX}")


_FIX = "use the model and optimizer sections of the run that saved it"
